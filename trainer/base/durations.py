"""Durations in a readable form."""


def duration(seconds: float | None) -> str:
    """`95` → `1 min 35 s`; None → `unknown`."""
    if seconds is None:
        return "unknown"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s" if minutes else f"{rest} s"
