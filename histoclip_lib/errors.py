"""The one exception that HistoCLIP raises for input it cannot use."""


class HistoCLIPError(ValueError):
    """Bad input, named: the value, the place where it stands and what to do about it."""


def bullet_list(offenders: list[str], limit: int = 20) -> str:
    """Return offenders one a line, the first `limit` of them and a count of the rest."""
    lines = [f"  - {offender}" for offender in offenders[:limit]]
    if len(offenders) > limit:
        lines.append(f"  - ... and {len(offenders) - limit} more")
    return "\n".join(lines)
