"""Scores of answers against references, as the captioning field computes them, and of answers alone.

Answers and references are cut into words as the COCO caption evaluation does, punctuation dropped (`caption_words`).
CIDEr (CIDEr-D), ROUGE-L (beta 1.2) and METEOR 1.5 are those of pycocoevalcap, BLEU is sacrebleu's without smoothing;
they are given times 100, as in the paper. The extra `eval` brings both packages; METEOR needs Java as well.
"""

import importlib.util
import re
import shutil
import unicodedata
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from swjax.data.text import UNSPACED
from swjax.evaluation.bootstrap import Score, Values, bootstrap, mean_score, ratio_score
from swjax.evaluation.errors import EvaluationError
from swjax.python_file import PythonFileError, call_python_file

REPEATED_NGRAM = 4
SHORTEST_SENTENCE = 3

_CONTRACTIONS = re.compile(r"(?<=\w)(n't|'(?:s|m|d|re|ve|ll))\b")
# Vowels and tones that are written on the character before them.
_MARKS = "".join(chr(code) for code in range(0x0E00, 0x1800) if unicodedata.category(chr(code)).startswith("M"))
_WORD = re.compile(
    r"-[lr]rb-"  # brackets, which COCO keeps
    r"|n't|'(?:s|m|d|re|ve|ll)\b"
    r"|(?:[^\W\d_]\.){2,}"  # p.m.
    rf"|[^\W{UNSPACED}]+(?:[-'.,:/][^\W{UNSPACED}]+)*"
    rf"|(?=\w)[{UNSPACED}][{_MARKS}]*"  # a character is a word, where there are no spaces
    r"|[$%&#@+=*]"
)
_TERMINATED = re.compile(r"[.!?。！？][\"')\]」』”]*$")
_SENTENCE_END = re.compile(r"(?<=[.!?])[\"')\]]*\s+|(?<=[。！？])[」』”]*\s*")


class MissingPackageError(EvaluationError):
    """A score needs something that is not installed here."""


def caption_words(text: str) -> list[str]:
    """A text cut into lower-case words without punctuation, as COCO's PTB tokenizer cuts captions.

    `'s` and `n't` are words of their own, words with a hyphen and numbers with a point are one. It differs from the
    Java program in rare abbreviations ("Mr." becomes "mr"). In scripts without spaces, such as Chinese, Japanese and
    Thai, every character is a word, as is usual for their captions.
    """
    lower = text.lower().replace("’", "'").replace("(", " -lrb- ").replace(")", " -rrb- ")
    return _WORD.findall(_CONTRACTIONS.sub(r" \1", lower))


def text_scores(answers: Sequence[str], references: Sequence[str], *, meteor: bool = False) -> dict[str, Score]:
    """CIDEr, BLEU-1, BLEU-4, ROUGE-L and, if asked for, METEOR, times 100, each with its interval over videos.

    CIDEr weighs n-grams by how few of all references have them, and these weights stay as they are under resampling.
    METEOR is the mean over videos.

    Args:
        answers: one a video.
        references: one a video.
        meteor: whether to compute METEOR too; it takes Java some seconds to start.

    Raises:
        MissingPackageError: if the extra `eval` is not installed, or METEOR is asked for and there is no Java.
        EvaluationError: if the lists do not match or are empty.
    """
    if not answers or len(answers) != len(references):
        raise EvaluationError(f"scores need an answer for each reference, got {len(answers)} and {len(references)}")
    missing = [name for name in ("sacrebleu", "pycocoevalcap") if importlib.util.find_spec(name) is None]
    if missing:
        raise MissingPackageError(f"CIDEr, BLEU and ROUGE-L need {' and '.join(missing)}: pip install 'swjax[eval]'")
    from pycocoevalcap.cider.cider import Cider
    from pycocoevalcap.rouge.rouge import Rouge

    said = {number: [" ".join(caption_words(text))] for number, text in enumerate(answers)}
    meant = {number: [" ".join(caption_words(text))] for number, text in enumerate(references)}
    scores = {
        "cider": mean_score(100 * Cider().compute_score(meant, said)[1]),
        "bleu1": _bleu(said, meant, 1),
        "bleu4": _bleu(said, meant, 4),
        "rouge_l": mean_score(100 * np.array([_rouge_l(Rouge(), said[n], meant[n]) for n in said])),
    }
    if meteor:
        scores["meteor"] = mean_score(100 * _meteor(said, meant))
    return scores


def _rouge_l(scorer: Any, said: list[str], meant: list[str]) -> float:
    """ROUGE-L of one answer; the package divides by zero where one has no words."""
    return scorer.calc_score(said, meant) if said[0] and meant[0] else 0.0


def _bleu(said: dict[int, list[str]], meant: dict[int, list[str]], order: int) -> Score:
    """Corpus BLEU with n-grams up to an order."""
    from sacrebleu.metrics import BLEU

    options = {"smooth_method": "none", "max_ngram_order": order}
    bleu = BLEU(
        tokenize="none", force=True, effective_order=True, **options
    )  # of single answers: counts alone are used
    sentences = [bleu.sentence_score(said[n][0], meant[n]) for n in said]
    statistics = np.array([[*s.counts, *s.totals, s.sys_len, s.ref_len] for s in sentences])

    def combine(sums: Float[np.ndarray, "S"]) -> float:
        *counts, said_words, meant_words = (round(count) for count in sums)
        correct, total = counts[:order], counts[order:]
        return BLEU.compute_bleu(correct, total, said_words, meant_words, **options).score

    return bootstrap(statistics, combine)


def _meteor(said: dict[int, list[str]], meant: dict[int, list[str]]) -> Float[np.ndarray, "videos"]:
    """METEOR 1.5 of each answer: exact, stemmed, synonym and paraphrase matches."""
    if shutil.which("java") is None:
        raise MissingPackageError("METEOR needs Java, and there is no `java` on the PATH; install one, or leave it out")
    from pycocoevalcap.meteor.meteor import Meteor

    scorer = Meteor()
    try:
        return np.array(scorer.compute_score(meant, said)[1])
    except (ValueError, OSError) as error:  # Java has ended, and its answers are empty
        raise EvaluationError(f"METEOR's Java program failed ({error}); does it have 2 GB of memory?") from error
    finally:
        scorer.meteor_p.kill()
        scorer.meteor_p.wait()


def own_metric(place: str, answers: Sequence[str], references: Sequence[str]) -> Score:
    """A metric that needs weights of its own, such as BLEURT: its mean over videos with the interval.

    Args:
        place: `FILE.py:FUNCTION`; the function takes the list of answers and that of references, and returns a number
            for each.
        answers: one a video.
        references: one a video.

    Raises:
        EvaluationError: if there is no such function, it fails, or returns something else than numbers.
    """
    path, _, name = place.rpartition(":")
    if not Path(path).is_file():
        raise EvaluationError(f"a metric is named as FILE.py:FUNCTION, and {place!r} names no Python file")
    try:
        values = np.array(call_python_file(path, name, list(answers), list(references), kind="metric"), np.float64)
    except (PythonFileError, TypeError, ValueError) as error:
        raise EvaluationError(f"the metric {place} failed: {error}") from error
    if values.shape != (len(answers),) or not np.isfinite(values).all():
        raise EvaluationError(f"the metric {place} must return a number for each of the {len(answers)} answers")
    return mean_score(values)


def perplexity(losses: Values, tokens: Values) -> Score:
    """Exponential of the mean cross entropy by token.

    Args:
        losses: summed cross entropy of each reference, in nats.
        tokens: its tokens.
    """
    statistics = np.stack([np.asarray(losses, np.float64), np.asarray(tokens, np.float64)], axis=1)
    return bootstrap(statistics, lambda sums: float(np.exp(sums[0] / sums[1])))


def form_scores(answers: Sequence[str]) -> dict[str, Score]:
    """What can be seen of answers without references: `repetition` and `fragments`, each from 0 to 1."""
    return {
        "repetition": _share(answers, repeated_ngrams),
        "fragments": _share(answers, count_fragments),
    }


def repeated_ngrams(text: str, n: int = REPEATED_NGRAM) -> tuple[int, int]:
    """How many n-grams of words have occurred in the same text before, and how many there are.

    Their ratio is seq-rep-n of "Neural Text Generation with Unlikelihood Training" (Welleck et al., 2020).
    """
    words = caption_words(text)
    ngrams = [tuple(words[i : i + n]) for i in range(len(words) - n + 1)]
    return len(ngrams) - len(set(ngrams)), len(ngrams)


def count_fragments(text: str) -> tuple[int, int]:
    """How many sentences of a text are fragments, and how many sentences there are; nothing is one fragment.

    A sentence ends at a full stop, exclamation or question mark before a space. By its form alone it is a fragment if
    it does not end so (it breaks off), does not begin with a capital or a digit (its beginning is missing), or has
    fewer than three words. Its grammar is not looked at.
    """
    sentences = [sentence for sentence in _SENTENCE_END.split(text.strip()) if sentence.strip()]
    return sum(map(_is_fragment, sentences)) if sentences else 1, max(1, len(sentences))


def _is_fragment(sentence: str) -> bool:
    begins = next((character for character in sentence if character.isalnum()), "")
    # Letters of a script without cases may begin a sentence.
    begun = begins.isupper() or begins.isdigit() or begins.upper() == begins.lower() != ""
    whole = begun and _TERMINATED.search(sentence) is not None
    return not whole or len(caption_words(sentence)) < SHORTEST_SENTENCE


def _share(answers: Sequence[str], count: Callable[[str], tuple[int, int]]) -> Score:
    counts = np.array([count(text) for text in answers])
    return ratio_score(counts[:, 0], counts[:, 1])
