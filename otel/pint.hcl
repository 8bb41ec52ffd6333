# Run with: pint --offline --config otel/pint.hcl lint --fail-on=info otel/rules/*.yml

# Every alert says how urgent it is, what it means, where to look and what to do.
rule {
  match {
    kind = "alerting"
  }
  label "severity" {
    severity = "bug"
    value    = "(page|ticket)"
    required = true
  }
  annotation "summary" {
    severity = "bug"
    required = true
  }
  annotation "description" {
    severity = "bug"
    required = true
  }
  annotation "dashboard_url" {
    severity = "bug"
    value    = "http://localhost:3000/d/outlive-(flows|task|connections|objectives|pipeline)(\\?.+)?"
    required = true
  }
  annotation "runbook_url" {
    severity = "bug"
    value    = "docs/runbooks/{{ $alert }}.md"
    required = true
  }
}

# The dashboards choose by job.
rule {
  match {
    kind = "recording"
  }
  aggregate ".+" {
    severity = "bug"
    keep     = ["job"]
  }
}
