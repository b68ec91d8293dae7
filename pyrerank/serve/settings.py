"""The settings of a server.  This module imports nothing of it, so arguments can name defaults."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Settings:
    """Names, keys and limits of a server.

    Attributes:
        names: at least one name that requests may call the model; answers have the first.
        api_keys: the keys, of which a request must have one.  If there is none, no key is needed.
        cors_origins: the origins whose pages may read answers; without them, there are no CORS
            headers.
        page: whether there is a page at / to try the model on.
        max_requests: how many requests may be answered or wait at a time; more get status 429.
        max_body: how many bytes the body of a request may have.
        max_bodies: how many bytes all bodies may have that are here at a time; more get 429.
        max_documents: how many documents, pairs or inputs a request may have.
        max_pictures: how many images, videos and frames a request may have.
        max_tokens: how many tokens all prompts of a request may have.
        timeout: how many seconds may pass from a request's headers to its answer.
        batch_wait: how many seconds a request waits for others that fill a pass with it, while no
            pass is computed.

    Raises:
        ValueError: there is no name, a key is empty, or a limit is not positive.
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
