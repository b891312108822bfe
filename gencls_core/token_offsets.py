"""Which characters of a text its scored tokens are, read without torch where that can be."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from gencls_core.errors import StoreError
from gencls_core.evidence import Bounds
from gencls_core.report.inference import origin_of
from gencls_core.run import RunDirectory
from gencls_core.trained_run import base_of, models_of_run

__all__ = ["TokenReader", "scored_of"]


class TokenReader:
    """Tells the characters of tokens, by the tokenizer that all models of a run share."""

    def __init__(self, run: RunDirectory) -> None:
        """Load the tokenizer.

        Raises:
            StoreError: when the run has no model to take it from, or it cannot be read.
        """
        origin = origin_of(run, run.manifest())
        models = models_of_run(origin, origin.manifest())
        self._folder = models[0].local()
        if not (self._folder / "tokenizer.json").exists():
            self._folder = base_of(origin, models).local()
        self._exact: Any = None
        self._plain: Any = None
        if (self._folder / "tokenizer.json").exists():
            # A few seconds sooner than transformers, and without torch.
            self._plain = _read(self._folder / "tokenizer.json")

    def offsets(self, text: str, ids: list[int]) -> list[Bounds]:
        """Give the characters of each scored token but the end of the text.

        Raises:
            StoreError: when the text's tokens are not those that were scored.
        """
        if self._plain is not None:
            read = self._plain.encode(text, add_special_tokens=False)
            if (count := scored_of(read.ids, ids)) is not None:
                return list(read.offsets[:count])
        # What transformers does beside the file.
        from gencls_core.model_loading import load_tokenizer
        from gencls_core.model_source import ResolvedModel

        if self._exact is None:
            self._plain = None
            self._exact = load_tokenizer(ResolvedModel.of_folder("tokenizer", self._folder))
        found = self._exact(
            text, add_special_tokens=False, split_special_tokens=True,
            return_offsets_mapping=True, return_attention_mask=False, verbose=False,
        )  # fmt: skip
        count = scored_of(found["input_ids"], ids)
        if count is None:
            raise StoreError(
                f"{self._folder}: this tokenizer makes other tokens of the text than were scored; "
                "`gencls verify` the run"
            )
        return [(int(start), int(stop)) for start, stop in found["offset_mapping"][:count]]


def _read(path: Path) -> Any:
    from tokenizers import Tokenizer, __version__

    try:
        tokenizer = Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises nothing more special
        raise StoreError.of(
            "the tokenizer cannot be read",
            place=path,
            found=str(error).splitlines()[0],
            expected=f"a file that tokenizers {__version__} knows",
            remedy="install tokenizers as run.json names it under `environment`, or look for "
            "damage with `gencls verify`",
        ) from None
    tokenizer.no_truncation()
    tokenizer.no_padding()
    # `<|endoftext|>` written in a text is text, not the end of it.
    tokenizer.encode_special_tokens = True
    return tokenizer


def scored_of(read: list[int], scored: list[int]) -> int | None:
    """Say how many of a text's tokens were scored, its end not counted; None if others were.

    Args:
        read: all tokens of the text.
        scored: those that were scored: of a text that was cut the first; else all, and perhaps the
            end after them.
    """
    if scored == read[: len(scored)]:
        return len(scored)
    return len(read) if scored[:-1] == read else None
