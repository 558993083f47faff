"""What the server holds at once, of both transports together: requests, and bytes of them."""

from service.errors import TooManyRequests

_RETRY_AFTER_SECONDS = 1.0  # queues estimate theirs; here many leave in a second


class Admission:
    """Counts requests in flight and the bytes that they sent, and refuses those beyond a bound.

    It belongs to the thread of the event loop. Who enters leaves, with the bytes that it took.
    """

    def __init__(
        self, *, maximum_requests: int = 1024, maximum_bytes: int = 128 * 1024 * 1024
    ) -> None:
        self.maximum_requests = maximum_requests
        self._maximum_bytes = maximum_bytes
        self._requests = 0
        self._bytes = 0

    def enter(self, size: int = 0) -> None:
        """Hold one request more, and so many bytes that it sent; raises TooManyRequests."""
        if self._requests >= self.maximum_requests:
            raise too_many(
                f"the server is answering {self._requests} requests and takes no more at once"
            )
        self.take(size)
        self._requests += 1

    def take(self, size: int) -> None:
        """Hold so many bytes more; raises TooManyRequests."""
        if self._bytes + size > self._maximum_bytes:
            raise too_many(
                f"the server holds {self._bytes} bytes of requests and takes no more than "
                f"{self._maximum_bytes} at once"
            )
        self._bytes += size

    def release(self, size: int) -> None:
        """Hold so many bytes less."""
        self._bytes -= size

    def leave(self, size: int) -> None:
        """Hold one request less, and what it still had of its bytes."""
        self._requests -= 1
        self._bytes -= size


def too_many(what: str) -> TooManyRequests:
    """Return the error for something of which there is too much at once."""
    return TooManyRequests(f"{what}; try again", retry_after_seconds=_RETRY_AFTER_SECONDS)
