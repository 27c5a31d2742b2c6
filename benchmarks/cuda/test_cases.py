"""The cases compute the same in both libraries, here on the CPU; a wrong answer, a failing case and a hanging one are told."""

import json
import time

import pytest

pytest.importorskip("torch")

from benchmarks.cuda import __main__ as command
from benchmarks.cuda import cases_attention, cases_kernels, cases_models, cases_recurrent, report, timing, worker
from benchmarks.cuda.case import Call, WrongAnswerError, errors, verify
from benchmarks.cuda.device import Device

RATES = {"highest": 1e12, "high": 1e12, "medium": 1e12, "bytes": 1e11}
CPU = Device("cpu")
SMALL = [
    *(cases_recurrent.Recurrent(cell=cell, mode=mode, H=6, B=3, T=8, precision=precision, **form)
      for cell in ("LSTM", "GRU") for mode in ("inference", "training") for precision in ("high", "medium")
      for form in ({}, {"ragged": True}, {"layers": 2}, {"bidirectional": True}, {"ragged": True, "bidirectional": True})),
    cases_recurrent.Recurrent(cell="LSTM", mode="training", H=6, B=3, T=8, precision="medium", half=True),
    cases_recurrent.Recurrent(cell="GRU", mode="training", H=6, B=3, T=8, graph=True),
    *(cases_attention.Attention(mode=mode, B=2, heads=3, Tq=9, Tk=9, D=8, precision=precision, **form)
      for mode in ("inference", "training") for precision in ("high", "medium") for form in ({}, {"causal": True}, {"ragged": True})),
    cases_attention.Attention(mode="inference", B=2, heads=3, Tq=1, Tk=9, D=8, precision="medium"),
    cases_attention.CudnnAttention(mode="training", B=2, heads=3, Tq=9, Tk=9, D=8, causal=True, precision="medium"),
    *(case for mode in ("inference", "training") for case in (
        *(cases_attention.AdditiveAttention(mode=mode, B=2, Tq=3, Tk=8, D=5, ragged=ragged) for ragged in (False, True)),
        *(cases_attention.AttentionDecoder(cell=cell, mode=mode, B=2, T=4, S=3, H=5) for cell in ("LSTM", "GRU")),
        cases_kernels.CrossEntropy(mode=mode, N=5, V=7), cases_kernels.LinearCrossEntropy(mode=mode, N=5, H=3, V=7), cases_kernels.LayerNorm(mode=mode, M=5, N=8),
        cases_kernels.Gelu(mode=mode, n=9), cases_kernels.Embedding(mode=mode, N=9, V=5, E=4))),
    cases_kernels.Adam(matrices=3, n=5),
    *(cases_models.LanguageModel(cell=cell, V=11, E=8, layers=2, T=5, B=3, precision=precision)
      for cell in ("lstm", "gru", "transformer") for precision in ("highest", "medium")),
]


@pytest.fixture(autouse=True)
def few_turns(monkeypatch):
    monkeypatch.setattr(timing, "REPEATS", 1)
    monkeypatch.setattr(timing, "SPENT", 0.0)
    monkeypatch.setattr(timing, "TURN", 1e-6)


@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize("case", SMALL, ids=str)
def test_both_libraries_compute_the_same(case):
    row = worker.contest(CPU, case)
    assert row["ours"] > 0
    assert row["theirs"] > 0
    assert row["errors"].keys() == case.truth(CPU).keys()
    assert case.floor(RATES) >= 0


@pytest.mark.filterwarnings("default")
def test_pytorch_alone_needs_no_fastseq():
    row = worker.peers(CPU, cases_recurrent.Recurrent(cell="GRU", mode="training", H=6, B=3, T=8, ragged=True))
    assert row["ways"].keys() == {"padded, masked", "packed"}
    assert row["theirs"] == row["ways"][row["way"]]


def test_a_wrong_answer_is_refused():
    case = SMALL[0]
    right = case.truth(CPU)
    for wrong in (-right["y"], right["y"] * float("nan"), right["y"] + 0.1 * right["y"].abs().max()):
        with pytest.raises(WrongAnswerError, match="y: off by"):
            verify(case, errors("fastseq", {"y": wrong}, right), {"y": 1e-3})
    for missing in ({}, {"y": right["y"][None]}):
        with pytest.raises(WrongAnswerError, match="expected shape"):
            errors("fastseq", missing, right)
    verify(case, {"y": 0.02}, {"y": 0.011})


def test_a_turn_is_divided_by_its_calls():
    found = timing.medians(CPU, {"slow": Call(lambda: time.sleep(0.01), dict), "quick": Call(lambda: None, dict)}, before=lambda: None, repeats=3)
    assert found["slow"].call > 0.009
    assert found["quick"].call < found["slow"].call


def test_the_others_go_on_where_one_hangs_or_fails(monkeypatch):
    monkeypatch.setattr(worker, "LIMIT", 5.0)
    sizes = {"mode": "inference", "B": 1, "heads": 1, "Tq": 2, "Tk": 2, "D": 4}
    endless = cases_recurrent.Recurrent(cell="LSTM", mode="inference", H=1, B=1, T=10**7)
    failing = cases_attention.Attention(**{**sizes, "heads": -1})
    cases = [failing, endless, cases_attention.Attention(**sizes), cases_attention.Attention(**sizes, causal=True)]
    watched = worker.Watched("cpu", True)
    rows = [row | {"order": n} for n, row in enumerate(watched.rows(cases, 3600.0))]
    assert [("error" in row) for row in rows] == [True, True, False, False]
    assert rows[0]["error"].startswith("RuntimeError: ")
    assert rows[1]["error"] == "no answer within 5 s"
    assert rows[2]["way"] == "own choice"


def test_no_time_left_is_said():
    rows = list(worker.Watched("cpu", True).rows(SMALL[:2], -1.0))
    assert [row["error"] for row in rows] == ["not run: no time left"] * 2


def test_the_table_and_its_end():
    about = {"about": {"device": "a GPU", "PyTorch": "2"}, "rates": {"highest": 5e13, "high": 4e14, "medium": 8e14, "bytes": 3e12}}
    plain = {"family": "LSTM", "target": 1.5, "precision": "high", "seconds": 1.0}
    queues = {"our_queue": 2e-6, "their_queue": 4e-6}
    rows = [plain | {"case": "LSTM a", "order": 1, "ours": 1e-5, "theirs": 2e-5, **queues, "floor": 5e-6},
            plain | {"case": "LSTM b", "order": 0, "ours": 1e-5, "theirs": 1.28e-5, **queues, "floor": 0.0},
            plain | {"case": "LSTM c", "order": 2, "error": "RuntimeError: x | y\nz"},
            plain | {"case": "GRU", "family": "GRU", "target": None, "order": 3, "ours": 1e-5, "theirs": 3e-5, **queues, "floor": 0.0}]
    assert report.heading(about, "abc") == ("a GPU, PyTorch 2; commit abc. Measured: products 50.0 TFLOP/s in float32, 400.0 in tf32, 800.0 in bf16; "
                                            "a copy 3,000 GB/s.")
    assert list(report.table(rows))[2:] == ["| LSTM b | 10.0 | 12.8 | 2.0, 4.0 | 1.28 | - | 1.5 | not reached |", "| LSTM a | 10.0 | 20.0 | 2.0, 4.0 | 2.00 | 50% | 1.5 |  |",
                                            "| LSTM c | - | - | - | - | - | 1.5 | RuntimeError: x / y |", "| GRU | 10.0 | 30.0 | 2.0, 4.0 | 3.00 | - | - |  |"]
    assert list(report.summary(rows))[2:] == ["| LSTM | 2 | 1.28 | 1.60 | 1.5 | 1 not reached, 1 without a time |", "| GRU | 1 | 3.00 | 3.00 | - |  |"]


def test_the_quick_cases_come_first_and_every_name_is_one(capsys):
    cases = [case for _, case in command.chosen(command.arguments([]))]
    assert len({f"{case.family}: {case}" for case in cases}) == len(cases)
    assert [case.quick for case in cases] == sorted((case.quick for case in cases), reverse=True)
    assert all(case.quick for _, case in command.chosen(command.arguments(["--quick"])))
    assert command.main(["--only", "nothing like it"]) == 2
    assert "--list" in capsys.readouterr().err
    assert command.main(["--list", "--only", "GRU training", "--quick"]) == 0
    assert all("GRU training" in line for line in capsys.readouterr().out.splitlines())


@pytest.mark.filterwarnings("default")
def test_the_command_writes_what_it_prints(tmp_path, capsys):
    file = tmp_path / "times.json"
    assert command.main(["--device", "cpu", "--only", "LSTM inference T100 B1 H256", "--output", str(file)]) == 0
    found = json.loads(file.read_text())
    assert [row["case"] for row in found["rows"]] == ["LSTM inference T100 B1 H256 tf32"]
    assert "| LSTM inference T100 B1 H256 tf32 |" in capsys.readouterr().out
