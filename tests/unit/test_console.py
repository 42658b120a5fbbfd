"""What a rank prints: times in front of lines, none in front of tables, and the line of a log step."""

import re
import time

import pytest

from sparse_mlp_ds.log import console

RECORD = {
    "epoch": 9.09,
    "loss": 2.6964,
    "lr": 8.2e-4,
    "grad_norm": 0.734,
    "images_per_second": 243.6,
    "data_wait": 0.011,
    "eta_seconds": 78.4,
}


def test_every_line_has_the_time_in_front(capsys):
    before = time.strftime("%H:%M:%S")
    console.say("one\ntwo")
    after = time.strftime("%H:%M:%S")
    lines = [line.split(" ", 1) for line in capsys.readouterr().out.splitlines()]
    assert [text for _, text in lines] == ["one", "two"]
    assert all(shown in (before, after) for shown, _ in lines), lines


def test_a_progress_line_has_the_time_in_front(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    line = console.ProgressLine("pretrain", 0, 242)
    line.step(100)
    line.show(100, RECORD)
    line.close()
    shown = "pretrain 100/242 | ep 9.1 | loss 2.696 | lr 8.2e-04 | grad 0.73 | 244 img/s | wait 1% | eta 1:18"
    assert re.fullmatch(rf"\d\d:\d\d:\d\d {re.escape(shown)}\n", capsys.readouterr().out)


def test_a_line_of_text_has_its_perplexity_and_sequences():
    record = {key: value for key, value in RECORD.items() if key != "images_per_second"}
    shown = console.progress_text("mlm", 5, 10, record | {"sequences_per_second": 85.2, "val/perplexity": 81.12}, 100)
    assert " ppl 81.1 " in shown and " 85 seq/s " in shown and "img/s" not in shown
    assert (
        console.metric_text("f1", 0.5) == "f1 50.00 %"
        and console.metric_text("perplexity", 81.12) == "perplexity 81.12"
    )


ALARMS = {"bad/truncated": 1, "bad/decode": 2, "skipped_steps": 4, "moe/3.moe_c/dead": 2}
EXPERTS = {"moe/3.moe_s/load_cv": 0.24, "moe/3.moe_s/dropped": 0.1, "moe/3.moe_s/dead": 0}
EXPERTS |= {"moe/3.moe_c/load_cv": 0.12, "moe/3.moe_c/dropped": 0.02, "moe/3.moe_c/dead": 0}
GPU = {"gpu/memory_gib": 62.4, "gpu/mfu": 0.381}
VALIDATED = {"val/top1": 0.9312}


def test_a_wide_terminal_gets_everything():
    text = console.progress_text("finetune", 7, 1000, RECORD | EXPERTS | GPU | VALIDATED | ALARMS, 300)
    assert text.startswith(
        "finetune    7/1000 | ep 9.1 | loss 2.696 | val 93.1% | lr 8.2e-04 | grad 0.73 | 244 img/s | "
    )
    assert " | 62GiB | mfu 38% | drop 6.0% | experts cv 0.24 | dead 2 | bad 3 | skipped 4 | wait 1% | eta 1:18" in text


def test_80_columns_hold_what_matters_most():
    everything = RECORD | EXPERTS | GPU | VALIDATED
    text = console.progress_text("finetune", 1000, 2500, everything)
    assert text == "finetune 1000/2500 ep 9.1 loss 2.696 val 93.1% 62GiB mfu 38% eta 1:18"
    without_gpu = console.progress_text("finetune", 1000, 2500, RECORD | EXPERTS | VALIDATED)
    assert without_gpu == "finetune 1000/2500  ep 9.1  loss 2.696  val 93.1%  244 img/s  eta 1:18"
    assert "eta" in console.progress_text("finetune", 1000, 2500, everything | {"eta_seconds": 360_000})
    alarmed = console.progress_text("finetune", 1000, 2500, everything | ALARMS)
    assert all(part in alarmed for part in ("loss", "val", "dead 2", "bad 3", "skipped 4"))
    assert "wait 40%" in console.progress_text("finetune", 1000, 2500, everything | {"data_wait": 0.4})
    for width in (*range(71, 150), 71):
        for record in (everything, everything | ALARMS, RECORD, RECORD | EXPERTS):
            assert len(console.progress_text("a_stage_of_a_long_name", 99_999, 250_000, record, width)) <= width


@pytest.mark.parametrize(("columns", "room"), [("40", 71), ("80", 71), ("120", 111)])
def test_a_terminal_of_80_columns_is_the_narrowest(monkeypatch, columns, room):
    monkeypatch.setenv("COLUMNS", columns)
    assert console._room() == room


def test_the_newest_validation_stays_on_the_line(capsys):
    line = console.ProgressLine("finetune", 0, 100)
    for done, more in ((1, {}), (2, VALIDATED), (3, {}), (4, {"val/top1": 0.95})):
        line.show(done, RECORD | more)
    line.close()
    shown = [re.search(r"val (\S+)", text) for text in capsys.readouterr().out.splitlines()]
    assert [found and found[1] for found in shown] == [None, "93.1%", "93.1%", "95.0%"]


def test_the_final_table_has_no_times(capsys):
    stage = {"name": "finetune", "steps": 10, "images": 960, "seconds": 3661.0, "metrics": {"top1": 0.9, "ece": 0.0312}}
    summary = {"recipe": "digits", "world_size": 2, "ep_size": 2, "zero_stage": 2, "stages": [stage]}
    console.final_table(summary, "runs/digits")
    *table, last = capsys.readouterr().out.splitlines()
    assert "digits: 2 ranks, ep_size 2, ZeRO-2" in table[0]
    assert any("1:01:01" in line and "top1 90.00 %  ece 0.0312" in line for line in table)
    assert not any(re.match(r"\d\d:\d\d:\d\d ", line) for line in table)
    assert re.fullmatch(r"\d\d:\d\d:\d\d run folder: runs/digits", last)
