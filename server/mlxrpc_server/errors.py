"""What can go wrong, in the server's own words.

    ServerError
    ├── InvalidRequest        violations: the fields at fault                 INVALID_ARGUMENT
    │   ├── PromptTooLong     prompt_tokens, context_length, perhaps prompt_characters
    │   └── MaxTokensTooLarge prompt_tokens, max_tokens, context_length
    ├── ModelNotFound         name, nearest                                   NOT_FOUND
    ├── ModelUnusable         known, but it cannot be loaded                  FAILED_PRECONDITION
    ├── FingerprintMismatch   a resume that another model's text began        FAILED_PRECONDITION
    ├── Unavailable           reason, retry_after                             UNAVAILABLE
    └── DeadlineTooShort      estimate                                        DEADLINE_EXCEEDED

Raised where the fact is known; `status` turns them into gRPC's terms at the one seam.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

DOMAIN = "mlxrpc"


@dataclass(frozen=True, slots=True)
class Violation:
    """One field at fault: its path in the request, a sentence, and a word for programs."""

    path: str
    description: str
    reason: str = "INVALID_VALUE"


def not_supported(path: str) -> Violation:
    """For a field that the contract names and this server does not offer yet."""
    return Violation(path, "this server does not support the field yet", "FIELD_NOT_SUPPORTED")


class ServerError(Exception):
    """Any failure that a caller is told about; `str()` is the sentence for a person."""

    reason = "INTERNAL"

    @property
    def metadata(self) -> Mapping[str, str]:
        return {}


class InvalidRequest(ServerError):
    def __init__(self, violations: Sequence[Violation]) -> None:
        self.violations = tuple(violations)
        super().__init__(_sentence(self.violations))

    @property
    def reason(self) -> str:  # type: ignore[override]
        """The violations' own reason where all share it."""
        reasons = {violation.reason for violation in self.violations}
        return reasons.pop() if len(reasons) == 1 else "INVALID_REQUEST"


class PromptTooLong(InvalidRequest):
    """Where the characters are told, the tokens are not all counted: there are at least so many."""

    def __init__(
        self,
        path: str,
        description: str,
        prompt_tokens: int,
        context_length: int,
        *,
        prompt_characters: int | None = None,
    ) -> None:
        self.prompt_tokens = prompt_tokens
        self.context_length = context_length
        self.prompt_characters = prompt_characters
        super().__init__([Violation(path, description, "PROMPT_TOO_LONG")])

    @property
    def metadata(self) -> Mapping[str, str]:
        known = {
            "prompt_tokens": str(self.prompt_tokens),
            "context_length": str(self.context_length),
        }
        if self.prompt_characters is not None:
            known["prompt_characters"] = str(self.prompt_characters)
        return known


class MaxTokensTooLarge(InvalidRequest):
    """The prompt fits, and what may follow it does not."""

    def __init__(self, description: str, prompt_tokens: int, max_tokens: int, context_length: int) -> None:
        self.prompt_tokens = prompt_tokens
        self.max_tokens = max_tokens
        self.context_length = context_length
        super().__init__([Violation("stop.max_tokens", description, "MAX_TOKENS_TOO_LARGE")])

    @property
    def metadata(self) -> Mapping[str, str]:
        return {
            "prompt_tokens": str(self.prompt_tokens),
            "max_tokens": str(self.max_tokens),
            "context_length": str(self.context_length),
        }


class ModelNotFound(ServerError):
    reason = "MODEL_NOT_FOUND"

    def __init__(self, name: str, nearest: Sequence[str]) -> None:
        self.name = name
        self.nearest = tuple(nearest)
        hint = f"; the nearest names are {', '.join(self.nearest)}" if self.nearest else ""
        super().__init__(f"there is no model {shortened(name)!r} here{hint}")

    @property
    def metadata(self) -> Mapping[str, str]:
        return {"model": shortened(self.name), "nearest": ",".join(self.nearest)}


class ModelUnusable(ServerError):
    """The model is configured, but cannot be loaded as it is."""

    reason = "MODEL_UNUSABLE"

    def __init__(self, name: str, cause: str) -> None:
        self.name = name
        self.cause = cause
        super().__init__(f"model {name!r} cannot be loaded: {cause}")

    @property
    def metadata(self) -> Mapping[str, str]:
        return {"model": self.name}


class FingerprintMismatch(ServerError):
    reason = "FINGERPRINT_MISMATCH"

    def __init__(self, given: str, own: str) -> None:
        self.given = given
        self.own = own
        super().__init__(
            f"the stream was begun by fingerprint {shortened(given)!r} and this model is {own!r}:"
            " its tokens cannot be continued here"
        )

    @property
    def metadata(self) -> Mapping[str, str]:
        return {"given": shortened(self.given), "own": self.own}


class Unavailable(ServerError):
    """Not now: the same call may well succeed after `retry_after` seconds, here or elsewhere."""

    def __init__(self, reason: str, message: str, retry_after: float) -> None:
        self.reason = reason
        self.retry_after = retry_after
        super().__init__(message)


class DeadlineTooShort(ServerError):
    reason = "DEADLINE_TOO_SHORT"

    def __init__(self, estimate: float, remaining: float) -> None:
        self.estimate = estimate
        super().__init__(f"the first token is about {estimate:.2f} s away and the deadline leaves {remaining:.2f} s")

    @property
    def metadata(self) -> Mapping[str, str]:
        return {"estimate_seconds": f"{self.estimate:.3f}"}


def shortened(value: str, limit: int = 128) -> str:
    """What a caller sent, cut so that an error stays small."""
    return value if len(value) <= limit else value[: limit - 1] + "…"


def _sentence(violations: Sequence[Violation]) -> str:
    first = violations[0]
    more = f" (and {len(violations) - 1} more)" if len(violations) > 1 else ""
    return f"{first.path}: {first.description}{more}"
