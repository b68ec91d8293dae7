"""What can be set about a server."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Settings:
    """Names, keys and limits of a server.

    Attributes:
        names: what requests may call the model, the first one in answers; at least one.
        api_keys: keys, of which a request must have one; none: no key is asked for.
        cors_origins: origins whose pages may read answers; none: no CORS headers.
        page: whether there is a page to try the model on, at /.
        max_requests: most requests that are answered or wait at a time; more get 429.
        max_body: most bytes of a request's body.
        max_bodies: most bytes of all bodies that are here at a time; more get 429.
        max_documents: most documents, pairs or inputs of a request.
        max_pictures: most images, videos and frames of a request.
        max_tokens: most tokens of all prompts of a request.
        timeout: seconds from a request's headers to its answer.
        batch_wait: seconds that a request waits for others to fill a pass with, if nothing runs.

    Raises:
        ValueError: no name, an empty key, or a limit that is not positive.
    """

    names: tuple[str, ...]
    api_keys: tuple[str, ...] = ()
    cors_origins: tuple[str, ...] = ()
    page: bool = True
    max_requests: int = 1024
    max_body: int = 32 * 2**20
    max_bodies: int = 512 * 2**20
    max_documents: int = 2048
    max_pictures: int = 128
    max_tokens: int = 2**20
    timeout: float = 300.0
    batch_wait: float = 0.002

    def __post_init__(self) -> None:
        if not self.names or not all(self.names):
            raise ValueError("a served model needs a name that is not empty")
        if not all(key and key.isascii() and key.isprintable() for key in self.api_keys):
            raise ValueError("an API key is empty, or has characters that no HTTP header carries")
        if self.batch_wait < 0:
            raise ValueError(f"batch_wait must not be negative, got {self.batch_wait}")
        for name, value in vars(self).items():
            if name.startswith(("max_", "timeout")) and value <= 0:
                raise ValueError(f"{name} must be positive, got {value}")
