"""The README's commands on a small part of the data, and the files that they must leave.

In this process; each program in one of its own: tests/raylign/test_wheel.py and the tests that stop or kill it.
"""

import io
import json
import re
import shlex
import tarfile
from pathlib import Path

import pandas as pd
import pyarrow.parquet as pq
import pytest
from PIL import Image

from tests.in_process import succeed

ROOT = Path(__file__).parent.parent
LOCKED = ["image_tower.image_size=64", "epochs=3", "global_batch_size=32", "evaluation.every_epochs=1", "log_every=2"]


def readme_commands() -> dict[str, list[str]]:
    """The README's lines that begin with the environment's python, by program."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    lines = re.findall(r"^\.venv/bin/python -m (\w+) +([^#\n]+)", text, flags=re.MULTILINE)
    return {program: [program, *shlex.split(rest)] for program, rest in reversed(lines)}


@pytest.fixture(scope="module")
def home(ray_session: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Prepared and trained by the README's first two commands."""
    home = tmp_path_factory.mktemp("home")
    commands = readme_commands()
    succeed(*commands["pipelines"], f"output={home}/data", "source.limit=240", "image.size=64")
    succeed(*commands["training"], "name=demo", f"storage={home}/runs", f"data.path={home}/data", *LOCKED)
    return home


@pytest.mark.e2e
def test_a_run_leaves_all_it_promises(home: Path) -> None:
    run = home / "runs" / "demo"
    result = json.loads((run / "result.json").read_text())
    manifest = json.loads((home / "data" / "manifest.json").read_text())
    assert result["dataset"]["fingerprint"] == manifest["fingerprint"]
    assert result["dataset"]["train_samples"] == manifest["splits"]["train"]
    assert set(result["seconds"]) == {"start", "features", "training", "report"}
    for path in ("retrieval/openmoji/image_to_text_recall@1", "retrieval/openmoji/text_to_image_recall@10"):
        assert result["sample_sizes"][path] == manifest["splits"]["test"]
        assert 0 <= result["baselines"][path]["chance"] <= result["metrics"][path] <= 100
    assert "zero_shot/openmoji_subgroup/top1" in result["metrics"]
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    steps = manifest["splits"]["train"] // 32 * 3
    assert lines[-1]["step"] == steps == result["step"]
    wanted = {"step", "epoch", "samples", "loss", "lr", "temperature", "grad_norm", "samples_per_second", "data_wait"}
    assert all(wanted | {"peak_memory_gib"} <= set(line) for line in lines)
    assert lines[-1]["loss"] < lines[0]["loss"]
    scored = [line for line in lines if "held_out_loss" in line]
    assert len(scored) == 3 and result["held_out_loss"] == scored[-1]["held_out_loss"] < scored[0]["held_out_loss"]
    assert [finding["kind"] for finding in result["findings"]] == []  # of three evaluations nothing is said
    page = (run / "report.html").read_text(encoding="utf-8")
    assert manifest["attribution"] in page and 'http-equiv="refresh"' not in page  # the page at the end
    assert (run / "config.yaml").exists() and any((run / "tensorboard").iterdir())
    assert len(list(run.glob("checkpoint_*/state.safetensors"))) == 2


@pytest.mark.e2e
def test_the_same_commands_again_change_nothing(home: Path) -> None:
    commands = readme_commands()
    before = {path: path.stat().st_mtime_ns for path in home.rglob("*.json")}
    again = succeed(*commands["pipelines"], f"output={home}/data", "source.limit=240", "image.size=64")
    assert f"{home}/data" in again
    again = succeed(*commands["training"], "name=demo", f"storage={home}/runs", f"data.path={home}/data", *LOCKED)
    assert f"{home}/runs/demo: " in again and "retrieval/openmoji/image_to_text_recall@1" in again
    assert {path: path.stat().st_mtime_ns for path in home.rglob("*.json")} == before


@pytest.mark.e2e
def test_evaluation_from_pixels_gives_the_scores_of_the_run(home: Path) -> None:
    """Training scores cached float16 features; evaluation runs the towers on the images again."""
    output = home / "evaluation"
    overrides = [f"checkpoint={home}/runs/demo", f"data.openmoji.path={home}/data", f"output={output}", f"cache={home}/cache"]
    table = succeed(*readme_commands()["evaluation"], *overrides)
    assert "zero_shot/openmoji_group/top1" in table and "retrieval/openmoji/mean_recall@1" in table
    trained = json.loads((home / "runs" / "demo" / "result.json").read_text())["metrics"]
    compared = 0
    for path in output.glob("demo/*/*/result.json"):
        result = json.loads(path.read_text())
        task = {"zeroshot_retrieval": "retrieval", "zeroshot_classification": "zero_shot"}[result["task"]]
        for name, count in result["sample_sizes"].items():
            # At most one item may move by the features' rounding.
            known = trained[f"{task}/{result['dataset']}/{name}"]
            assert abs(result["scores"][name] - known) <= 100 / count * 1.001 or "per_class" in name
            compared += 1
    assert compared == 10 + 2 * 3, "retrieval with its means, and two labels"
    page = output / "report.html"
    assert "<html" in page.read_text() and "demo" in page.read_text()

    before = {path: path.read_bytes() for path in output.rglob("result.json")}
    page.unlink()
    again = succeed(*readme_commands()["evaluation"], *overrides)
    assert "embed demo" not in again, "all embeddings are found again"
    assert {path: path.read_bytes() for path in output.rglob("result.json")} == before and page.exists()


@pytest.mark.e2e
def test_a_sweep_tabulates_and_resumes(home: Path) -> None:
    sweep = home / "sweep.yaml"
    sweep.write_text(
        f"name: sweep\nstorage: {home}/sweeps\nbase: training/configs/openmoji.yaml\nseeds: [1]\n"
        f"overrides: {{data.path: {home}/data, image_tower.image_size: 64, global_batch_size: 32, epochs: 1}}\n"
        "grid: {objective.name: [clip, siglip]}\n"
    )
    said = succeed("tuning", str(sweep))
    assert "2 at a time, each 1 worker x 1 CPU" in said and "one seed" in said
    trials = pd.read_csv(home / "sweeps" / "sweep" / "trials.csv").set_index("objective.name")
    assert (trials["status"] == "finished").all() and (trials["split"] == "test").all()
    summary = pd.read_csv(home / "sweeps" / "sweep" / "summary.csv").query("metric == 'score'").set_index("cell")
    for cell in ("clip", "siglip"):
        assert summary.loc[cell, "n"] == 1
        assert summary.loc[cell, "mean"] == pytest.approx(trials.loc[cell, "retrieval/openmoji/mean_recall@1"])
    page = home / "sweeps" / "sweep" / "report.html"
    assert f"{page.parent}: " in succeed("tuning", str(sweep))
    page.unlink()
    assert str(page) in succeed("tuning", "report", str(page.parent)) and page.exists()


@pytest.mark.e2e
def test_own_shards_are_checked_and_prepared_with_their_bad_rows_listed(ray_session: None, tmp_path: Path) -> None:
    """The README's commands for a user's own data."""
    for shard in range(2):
        with tarfile.open(tmp_path / f"{shard:05d}.tar", "w") as tar:
            for i in range(20):
                file = io.BytesIO()
                Image.new("RGB", (40, 30), (10 * i, 99 * shard, 255 - 10 * i)).save(file, "JPEG")
                data = b"<html>not found</html>" if (shard, i) == (1, 3) else file.getvalue()
                for name, content in ((f"{i}.jpg", data), (f"{i}.txt", f"shade {i} of {shard}".encode())):
                    member = tarfile.TarInfo(name)
                    member.size = len(content)
                    tar.addfile(member, io.BytesIO(content))
    config = re.search(r"```yaml\n# mine.yaml\n(.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), flags=re.DOTALL)
    assert config is not None
    (tmp_path / "mine.yaml").write_text(config[1])
    overrides = [f"source.paths={tmp_path}/{{00000..00001}}.tar", f"output={tmp_path}/mine", "splits.test=0.2"]
    said = succeed("pipelines", str(tmp_path / "mine.yaml"), "--check", *overrides)
    assert "2 of 2 units scanned, 40 rows, 40 images decoded" in said and "html" in said and "JPEG 100%" in said
    assert not (tmp_path / "mine").exists()
    said = succeed("pipelines", str(tmp_path / "mine.yaml"), *overrides)
    assert "39 of 40 rows kept" in said
    rejected = pq.read_table(tmp_path / "mine" / "rejected.parquet").to_pylist()
    assert [(row["key"], row["reason"]) for row in rejected] == [("00001/3", "html")]


@pytest.mark.e2e
@pytest.mark.parametrize("config", ["from-scratch", "finetune"])
def test_towers_that_train_learn(home: Path, config: str) -> None:
    """Pixels and tokens in, towers trained: one epoch, and the loss falls."""
    small = ["epochs=4", "image_tower.image_size=32"] if config == "from-scratch" else ["epochs=1", "image_tower.image_size=48"]
    overrides = [f"name={config}", f"storage={home}/runs", f"data.path={home}/data", "global_batch_size=16", "log_every=1"]
    succeed("training", f"training/configs/{config}.yaml", *overrides, *small, "schedule.warmup_steps=2")
    lines = (home / "runs" / config / "metrics.jsonl").read_text().splitlines()
    losses = [json.loads(line)["loss"] for line in lines]
    quarter = len(losses) // 4
    assert sum(losses[-quarter:]) / quarter < 0.95 * sum(losses[:quarter]) / quarter
