"""Texts of all classes as one causal language model reads them: each after a class's prefix."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Self

from gencls_core.errors import ModelError, TrainingError
from gencls_core.models import CausalLM, tokenizer_digest
from gencls_core.objectives.causal import load_base
from gencls_core.objectives.texts import refuse_absent_classes, write_model
from gencls_core.prefixes import write_prefixes
from gencls_core.prompted import PromptTokens
from gencls_core.tokenization import SequencePolicy, TokenizedText, Window, windows_of
from gencls_core.training_task import TrainingTask

__all__ = ["ClassPrefixes", "LabelledText", "PrefixedTexts"]


@dataclass(frozen=True)
class LabelledText:
    """A text after the prefix of its own class, whose number is `label`."""

    tokens: TokenizedText
    label: int

    def __len__(self) -> int:
        """Give the number of scored tokens."""
        return len(self.tokens)


@dataclass(frozen=True)
class ClassPrefixes:
    """The prefix of each class, in class order, and how texts are read after it."""

    of_class: dict[str, str]
    ids: list[list[int]]
    """Token ids of each class's prefix."""
    windows: list[int]
    """Tokens that are read at once after each class's prefix."""
    policy: SequencePolicy

    @classmethod
    def of(cls, lm: CausalLM, of_class: dict[str, str], policy: SequencePolicy) -> Self:
        """Tokenise the prefixes.

        Raises:
            ModelError: when the tokenizer cannot tell two of them apart, or they leave no room for
                a text.
        """
        tokens = PromptTokens.of(lm, {name: [prefix] for name, prefix in of_class.items()})
        ids = [prefix for [prefix] in tokens.of_class.values()]
        found = cls(of_class, ids, [tokens.window(policy, prefix) for prefix in ids], policy)
        if found.room < 2:  # a later window reads the prefix, and a token before its first
            raise ModelError.of(
                "the prefixes leave no room for a text",
                place="--prefix",
                found=f"a prefix of {tokens.longest} tokens",
                expected=f"far fewer than the {policy.window} that the model reads at once",
                remedy="a shorter --prefix, or shorter --class-words",
            )
        return found

    @property
    def room(self) -> int:
        """Tokens of a text, EOS included, that fit into one window after every prefix."""
        return self.policy.window - max(map(len, self.ids)) - 1

    def cut_to(self, tokens: int) -> Self:
        """Give the same prefixes for texts of which the first tokens are read, in one window."""
        kept = min(filter(None, [self.policy.max_length, tokens, self.room]))
        return replace(self, policy=replace(self.policy, max_length=kept))

    def read(self, lm: CausalLM, texts: list[str], labels: Sequence[int]) -> list[LabelledText]:
        """Tokenise texts, each after its class's prefix; those without a token are left out."""
        encoded = lm.encode(texts) if texts else []
        read = [
            LabelledText(TokenizedText.of(ids, self.policy, self.ids[label]), label)
            for ids, label in zip(encoded, labels, strict=True)
        ]
        return [text for text in read if len(text)]

    def windows_of(self, texts: Sequence[LabelledText]) -> list[Window]:
        """Cut texts into windows, each of the size that its class's prefix leaves."""
        return [
            replace(window, text=number)
            for number, text in enumerate(texts)
            for window in windows_of([text.tokens], self.windows[text.label])
        ]

    def of_other(self, text: LabelledText, label: int) -> LabelledText:
        """Give the same tokens to score after the prefix of another class."""
        return LabelledText(text.tokens.after(self.policy.bos_id, self.ids[label]), label)


@dataclass(frozen=True)
class PrefixedTexts:
    """A base model, the prefixes of all classes, and the texts of a training."""

    lm: CausalLM
    prefixes: ClassPrefixes
    texts: list[LabelledText]
    held_out: list[LabelledText]

    @classmethod
    def of(cls, task: TrainingTask, *, first_tokens: int | None = None) -> Self:
        """Load the base and tokenise the texts, or the first tokens of each.

        Raises:
            ModelError: when the base cannot be loaded, or the prefixes cannot be used with it.
            TrainingError: when there is nothing to train on.
        """
        refuse_absent_classes(task)
        lm, policy = load_base(task)
        named = dict(zip(task.classes, task.prefixes, strict=True))
        prefixes = ClassPrefixes.of(lm, named, policy)
        if first_tokens is not None:
            prefixes = prefixes.cut_to(first_tokens)
        texts = prefixes.read(lm, task.texts, task.labels)
        if not texts:
            raise TrainingError.of("no tokens to train on", place=task.title)
        held_out = prefixes.read(lm, task.validation_texts, task.validation_labels)
        return cls(lm, prefixes, texts, held_out)

    def save(self, folder: Path) -> str:
        """Write weights (or adapter), tokenizer and prefixes; give the tokenizer's digest."""
        write_model(self.lm, folder)
        write_prefixes(folder, self.prefixes.of_class)
        return tokenizer_digest(self.lm.tokenizer)
