"""Content negotiation: which media type an answer has, by the request's Accept header."""

from collections.abc import Sequence

from service.errors import NotAcceptable


def choose(accept: str | None, offered: Sequence[str]) -> str:
    """Return the media type of `offered` that the client likes best.

    Quality decides, then how exactly the type was named, then the order of `offered`. The first
    is for clients that take anything. Raises NotAcceptable that names what is offered.
    """
    if accept is None or not accept.strip():
        return offered[0]
    if accept in offered:
        return accept
    ranges = [_parse(part) for part in accept.split(",")]
    ranked = [
        (*_preference(ranges, media_type), -index) for index, media_type in enumerate(offered)
    ]
    quality, _, index = max(ranked)
    if quality == 0:
        raise NotAcceptable(
            f"none of '{accept[:200]}' can be answered; offered are {', '.join(offered)}",
            offered=list(offered),
        )
    return offered[-index]


def _preference(ranges: Sequence[tuple[str, float]], media_type: str) -> tuple[float, int]:
    """Return the quality that the most exact range gives a media type, and how exact it is."""
    patterns = ("*/*", media_type.partition("/")[0] + "/*", media_type)
    matches = [
        (patterns.index(pattern), quality) for pattern, quality in ranges if pattern in patterns
    ]
    exactness, quality = max(matches, default=(0, 0.0))
    return quality, exactness


def _parse(part: str) -> tuple[str, float]:
    """Return a range and its quality; what can't be read as a quality counts as 1."""
    pattern, *parameters = (piece.strip().lower() for piece in part.split(";"))
    for parameter in parameters:
        name, _, value = parameter.partition("=")
        if name.strip() == "q":
            try:
                return pattern, min(1.0, max(0.0, float(value)))
            except ValueError:
                break
    return pattern, 1.0
