// Here for go.sum alone: the hashes that tools/install holds the modules of its programs to. Not every copy of the
// checksum database knows dashboard-linter's; this one is kubernetes-mixin's.
module outlive/tools

go 1.26.0
