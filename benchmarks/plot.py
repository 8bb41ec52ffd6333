"""Cost against load, as a picture that is readable on light and on dark."""

from collections.abc import Iterable
from math import log10

from benchmarks.results import Results

WIDTH, HEIGHT = 720, 320
LEFT, RIGHT, TOP, BOTTOM = 60, 210, 20, 50
COLOURS = ("#2f81f7", "#3fb950", "#d29922", "#a371f7")
STYLE = (
    "text{font:12px system-ui,sans-serif;fill:#57606a}line{stroke:#8c959f;stroke-width:.5}"
    "@media(prefers-color-scheme:dark){text{fill:#9ea7b3}}"
)


def cost_against_load(growth: Iterable[Results]) -> str:
    """One line for each contender: microseconds a run, with so many others that execute."""
    lines: dict[str, list[tuple[int, float]]] = {}
    for point in growth:
        lines.setdefault(point["contender"], []).append((point["running"], point["microseconds"]))
    points = [point for line in lines.values() for point in line]
    least, most = (log10(end(running for running, _ in points)) for end in (min, max))
    step = 20.0 if max(cost for _, cost in points) > 60 else 10.0
    top = step * (1 + max(cost for _, cost in points) // step)

    def x(running: int) -> float:
        return LEFT + (log10(running) - least) / (most - least) * (WIDTH - LEFT - RIGHT)

    def y(cost: float) -> float:
        return HEIGHT - BOTTOM - cost / top * (HEIGHT - TOP - BOTTOM)

    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" role="img">',
        "<title>Microseconds a run against the runs that execute meanwhile</title>",
        f"<style>{STYLE}</style>",
    ]
    for number in range(int(top / step) + 1):
        at = y(number * step)
        parts.append(f'<line x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{at:.1f}" y2="{at:.1f}"/>')
        parts.append(f'<text x="{LEFT - 8}" y="{at + 4:.1f}" text-anchor="end">{number * step:g}</text>')
    parts += [
        f'<text x="{x(running):.1f}" y="{HEIGHT - BOTTOM + 18}" text-anchor="middle">{running:,}</text>'
        for running in sorted({running for running, _ in points})
    ]
    middle = (LEFT + WIDTH - RIGHT) / 2
    parts.append(f'<text x="{middle}" y="{HEIGHT - 10}" text-anchor="middle">runs that execute</text>')
    parts.append(
        f'<text x="14" y="{HEIGHT / 2}" text-anchor="middle" transform="rotate(-90 14 {HEIGHT / 2})">µs a run</text>'
    )
    for (name, line), colour in zip(lines.items(), COLOURS, strict=False):
        path = " ".join(f"{x(running):.1f},{y(cost):.1f}" for running, cost in line)
        parts.append(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="2"/>')
        parts += [
            f'<circle cx="{x(running):.1f}" cy="{y(cost):.1f}" r="3" fill="{colour}"/>'
            for running, cost in line
        ]
        last, cost = line[-1]
        parts.append(
            f'<text x="{x(last) + 10:.1f}" y="{y(cost) + 4:.1f}" style="fill:{colour}">{name}</text>'
        )
    return "\n".join([*parts, "</svg>", ""])
