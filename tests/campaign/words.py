"""Bad words: what is typed, written into a grid file, or passed to a function."""

from __future__ import annotations

from collections.abc import Iterator

import mtlkit
from mtlkit.registry import BALANCERS, MODELS
from mtlkit.settings import TrainingSettings
from tests.campaign.judge import MISSING, USAGE, Case, bench, call, command
from tests.conftest import DATA

DIGITS = "9" * 5000

# flag of bench to values that it refuses; the message names the flag, or what stands last here
FLAGS = {
    "epochs": (["0", "-1", "nan", "inf", "1e999", "six", "", "true"], "epochs"),
    "batch-size": (["0", "-5", "1.5", "x", "", DIGITS, "1e3x"], "batch"),
    "lr": (["0", "-1e-3", "nan", "inf", "fast", ""], "lr"),
    "patience": (["0", "-1", "1.5", "x", ""], "patience"),
    "seeds": (
        ["0", "-1", "1.5", "x", "", ",", "1,1", "0,-1", "1,x", "1000000000", DIGITS, "1:2"],
        "seeds",
    ),
    "jobs": (["0", "-1", "x", "1.5", ""], "jobs"),
    "timeout": (["0", "-1", "nan", "inf", "soon", ""], "timeout"),
    "device": (
        ["", "gpu", "mps", "CPU", "cuda:", "cuda:-1", "cuda:x", "cuda:01", " cpu"],
        "device",
    ),
    "tasks": (["", ",", "task-9", "task-1,task-1", "task-1,income", "*"], "task"),
    "models": (["", ",", " ", "mmo", "mmoe,,nope", "*nothing*", "./nope.py", "/", "."], "model"),
    "balancers": (["", ",", " ", "uwll", "uniform,nope", "?", "./nope.py", "uwl uwl"], "balancer"),
    "references": (["mmo", "nope", "none,mmoe", "*nothing*"], "model"),
    "dataset": (["censuss", "./nope.py", "synthetic,funnel"], "data"),
    "init-from": (["nowhere", ".", "/dev/null", "../home"], "no finished run in"),
    "freeze": (["embedding.*", "*", ","], "freeze"),
}

# assignment of --set to what the message names
ASSIGNMENTS = {
    "": "--set",
    "=": "''",
    "lr": "lr",
    "=3": "''",
    "lr=fast": "training.lr",
    "lr=inf": "training.lr",
    "lr=1:2": "training.lr",
    "lr.x=1": "lr",
    "epochs=true": "training.epochs",
    "batch_size=none": "training.batch_size",
    "batch_size=1.5": "training.batch_size",
    "optimizer=adamm": "training.optimizer",
    "optimizer=none": "training.optimizer",
    "momentum=1": "training.momentum",
    "schedule=step": "training.schedule",
    "warmup=1": "training.warmup",
    "l2_dense=-1": "training.l2_dense",
    "clip_norm=0": "training.clip_norm",
    "accumulate=0": "training.accumulate",
    "precision=fp16": "training.precision",
    "scope=shared": "training.scope",
    "heads=both": "training.heads",
    "evaluations=0": "training.evaluations",
    "validation_rows=0": "training.validation_rows",
    "sparse_rows=-1": "training.sparse_rows",
    "select=zz": "'zz'",
    "select_weights.task-9=1": "'task-9'",
    "select_weights.task-1=-1": "training.select_weights.task-1",
    "task_weights=3": "training.task_weights",
    "task_weights.task-1=0": "training.task_weights.task-1",
    "task_weights.task-9=1": "'task-9'",
    "task_lr.task-1=-1": "training.task_lr.task-1",
    "task_every.task-1=0": "training.task_every.task-1",
    "task_every.task-1=1.5": "training.task_every.task-1",
    "batches=random": "training.batches",
    "cover=0": "training.cover",
    "threads=0": "execution.threads",
    "threads=true": "execution.threads",
    "probes=maybe": "execution.probes",
    "save_scores=2": "execution.save_scores",
    "compile=yes": "execution.compile",
    "eval_batch_size=0": "execution.eval_batch_size",
    "training=3": "training",
    "training.lr.x=3": "lr",
    "a.b.c.d.e.f.g.h.i=1": "nested too deep",
    "experts=0": "experts",
    "experts=-4": "experts",
    "experts=true": "experts",
    "experts=x": "experts",
    f"experts={DIGITS}": "experts",
    "no_such_option=1": "'no_such_option'",
    "dropout=1": "dropout",
    "tower.task-9=8": "'task-9'",
    "embedding_dims.nope=4": "'nope'",
}

OTHER_COMMANDS = {
    # fetch
    ("fetch",): (USAGE, "dataset"),
    ("fetch", ""): (USAGE, "names nothing"),
    ("fetch", "censu"): (USAGE, "'censu'"),
    ("fetch", "Census Income"): (USAGE, "'Census Income'"),
    ("fetch", "mmoe"): (USAGE, "'mmoe'"),
    ("fetch", "census,funnel"): (USAGE, "census,funnel"),
    ("fetch", "synthetic", "--sample", "2"): (USAGE, "sample"),
    ("fetch", "synthetic", "--protocol", "aitm"): (USAGE, "protocol"),
    ("fetch", "synthetic", "--from", "nowhere"): (USAGE, "nowhere"),
    ("fetch", "synthetic", "--url-train", "http://x"): (USAGE, "links"),
    ("fetch", "census", "--protocol", "aitmm"): (USAGE, "protocol"),
    ("fetch", "census", "--from", "nowhere"): (USAGE, "nowhere"),
    ("fetch", "census", "--from", "/dev/null"): (MISSING, "null"),
    ("fetch", "census[protocol=rechub,tasks=education-marital]"): (USAGE, "leak"),
    ("fetch", "census[bins=1]"): (USAGE, "bins"),
    ("fetch", "ali-ccp", "--simulate", "-1"): (USAGE, "simulate"),
    ("fetch", "ali-ccp", "--sample", "0"): (USAGE, "sample"),
    ("fetch", "ali-ccp", "--sample", "2"): (USAGE, "sample"),
    ("fetch", "ali-ccp", "--min-count", "-1"): (USAGE, "min_count"),
    ("fetch", "ali-ccp", "--fields", "999"): (USAGE, "999"),
    ("fetch", "ali-ccp", "--fields", "x"): (USAGE, "'x'"),
    ("fetch", "ali-ccp", "--url-train", "http://x"): (USAGE, "two links"),
    ("fetch", "funnel[rows=-1]"): (USAGE, "rows"),
    ("fetch", "funnel[click_rate=2]"): (USAGE, "click_rate"),
    # report, list, info
    ("report", "nowhere"): (MISSING, "nowhere"),
    ("report", ""): (USAGE, "names nothing"),
    ("report", "/dev/null"): (MISSING, "/dev/null"),
    ("report", "nowhere", "--json"): (MISSING, "nowhere"),
    ("report", "nowhere", "--out", "there"): (MISSING, "nowhere"),
    ("report", "a", "b"): (USAGE, "b"),
    ("report", "--nope"): (USAGE, "--nope"),
    ("report", "a" * 5000): (MISSING, "aaa"),
    ("list",): (USAGE, "kind"),
    ("list", "model"): (USAGE, "model"),
    ("list", "models", "zzz*"): (USAGE, "'zzz*'"),
    ("list", "models", "["): (USAGE, "'['"),
    ("info",): (USAGE, "name"),
    ("info", ""): (USAGE, "names nothing"),
    ("info", "mmo"): (USAGE, "Did you mean mmoe"),
    ("info", "MMOE"): (USAGE, "Did you mean mmoe"),
    ("info", "_moe"): (USAGE, "'_moe'"),
    ("info", "../models/mmoe"): (USAGE, "'../models/mmoe'"),
    ("info", "./nope.py"): (USAGE, "./nope.py"),
    ("info", "mmoe[experts=4]"): (USAGE, "mmoe[experts=4]"),
    # no command at all
    ("train",): (USAGE, "train"),
    ("--nope",): (USAGE, "--nope"),
    ("bench", "--nope"): (USAGE, "--nope"),
    ("bench", "--epochs"): (USAGE, "--epochs"),
    ("bench", "a.yaml", "b.yaml"): (USAGE, "b.yaml"),
    ("bench", "nowhere.yaml"): (USAGE, "nowhere.yaml"),
    ("bench", "."): (USAGE, "."),
}

# name with options to what the message names; models are told by the flag
MODEL_SPECS = {
    "mmoe[experts=0]": "experts",
    "mmoe[experts=4.5]": "experts",
    "mmoe[experts=none]": "experts",
    "mmoe[experts=4,experts=5]": "experts",
    "mmoe[expert=4]": "Did you mean experts",
    "mmoe[hidden=0]": "hidden",
    "mmoe[hidden=64:-1]": "hidden",
    "mmoe[hidden=a:b]": "hidden",
    "mmoe[embedding=0]": "embedding",
    "mmoe[dropout=-.1]": "dropout",
    "mmoe[dropout=nan]": "dropout",
    "mmoe[cvr=clicked]": "CVR",
    "mmoe[tower.task-9=8]": "'task-9'",
    "mmoe[tower=x]": "tower",
    "mmoe[experts]": "'experts'",
    "mmoe[=4]": "'=4'",
    "mmoe[experts=4": "mmoe[experts=4",
    "mmoe]experts=4[": "mmoe]experts=4[",
    "mmoe[[experts=4]]": "mmoe[[experts=4]]",
    "mmoe[experts=4]x": "mmoe[experts=4]x",
    "mmoe[experts=4][hidden=8]": "mmoe[experts=4][hidden=8]",
    "[experts=4]": "[experts=4]",
    "mmoe[tower=8,tower.task-1=4]": "tower",
    "mmoe[a.b.c.d.e.f.g.h.i=1]": "nested too deep",
    "mmoe(experts=4)": "mmoe(experts=4)",
    "mmoe{experts=4}": "mmoe{experts=4}",
    "mmoe;ls": "mmoe;ls",
    "-mmoe": "-mmoe",
    "mmoe\nple": "mmoe",
    "mmoe\x1b[31m": "mmoe",
    "＊": "＊",
    "mmoe\u202eelp": "mmoe",
    "single_task": "Did you mean single-task",
    "Shared-Bottom": "Did you mean shared-bottom",
    "uniform": "'uniform'",
    "census": "'census'",
    "__init__": "'__init__'",
    "_moe": "'_moe'",
    "mmoe.py": "mmoe.py",
    "esmm": "esmm",
}
BALANCER_SPECS = {
    "static[w=1]": "static",
    "static[w=1:2:3]": "static",
    "static[w=0:0]": "static",
    "static[w=-1:2]": "static",
    "static[w=x:y]": "w",
    "static[w=inf:1]": "w",
    "scalarization[n=0]": "n",
    "scalarization[n=10000000]": "n",
    "dwa[temperature=0]": "temperature",
    "gradnorm[alpha=x]": "alpha",
    "cagrad[c=-1]": "c",
    "uwl[x=1]": "'x'",
    "uniform[]]": "uniform[]]",
    "rlw[": "rlw[",
    "GradNorm2": "Did you mean gradnorm",
    "mmoe": "'mmoe'",
    "none": "'none'",
    "pcgrad=1": "pcgrad=1",
}
DATASET_SPECS = {
    "[]": "[]",
    "synthetic[rows=0]": "rows",
    "synthetic[rows=-5]": "rows",
    "synthetic[rows=x]": "rows",
    "synthetic[rows=1e12]": "rows",
    "synthetic[d=0]": "'d'",
    "synthetic[p=2]": "'p'",
    "synthetic[p=nan]": "'p'",
    "synthetic[noise=-1]": "noise",
    "synthetic[tasks=0]": "tasks",
    "synthetic[nope=1]": "'nope'",
    "synthetic[rows=200,rows=300]": "rows",
    "synthetic[rows]": "'rows'",
    "funnel[rows=1e12]": "rows",
    "funnel[users=0]": "users",
    "funnel[buy_rate=-1]": "buy_rate",
    "census[protocol=none]": "protocol",
    "census[numeric=all]": "numeric",
    "ali-ccp[simulate=10,protocol=zz]": "protocol",
}

# text of a grid file to what the message names
GRIDS: dict[str | bytes, str] = {
    "models: [mmoe": "line 1",
    "models: mmoe]": "mmoe]",
    "modles: mmoe": "Did you mean models",
    "- mmoe": "key: value",
    "mmoe": "key: value",
    "3": "key: value",
    "models: mmoe\nmodels: ple": "'models' twice",
    "models: 3": "models",
    "models: {mmoe: 1}": "models",
    "models: [mmoe, 3]": "models",
    "models: [[mmoe]]": "models",
    "models: []": "models",
    "models: null": "models",
    "models: ''": "models",
    "models: [null]": "models",
    "models: true": "models",
    "balancers: []": "balancers",
    "balancers: {uwl: {}}": "balancers",
    "references: 3": "references",
    "tasks: []": "tasks",
    "tasks: ''": "tasks",
    "tasks: [task-9]": "task-9",
    "seeds: 0": "seeds",
    "seeds: -1": "seeds",
    "seeds: true": "seeds",
    "seeds: 1.5": "seeds",
    "seeds: []": "seeds",
    "seeds: [0, 0]": "seeds",
    "seeds: [0, -1]": "seeds",
    "seeds: [a]": "seeds",
    "seeds: {a: 1}": "seeds",
    f"seeds: {DIGITS}": "number",
    "seeds: 2020-02-30": "date",
    "seeds: 2020-02-20": "seeds",
    "training: 3": "training",
    "training: [lr]": "training",
    "training: {lr: fast}": "training.lr",
    "training: {lr: .inf}": "training.lr",
    "training: {lr: .nan}": "training.lr",
    "training: {lr: true}": "training.lr",
    "training: {lrr: 1}": "training.lrr",
    "training: {1: 2}": "training",
    "training: {null: 2}": "training",
    "training: {task_weights: [1, 2]}": "task_weights",
    "training: {task_weights: {task-1: x}}": "task_weights",
    "execution: {jobs: 0}": "execution.jobs",
    "execution: {device: tpu}": "execution.device",
    "execution: {timeout: -1}": "execution.timeout",
    "model: [experts]": "model",
    "model: {no_such_option: 1}": "'no_such_option'",
    "model: {experts: [1, 2]}": "experts",
    "model: {experts: {a: 1}}": "experts",
    "balancer: {no_such_option: 1}": "'no_such_option'",
    "1: 2": "1",
    "? [a, b]\n: c": "YAML",
    "a: &a [*a]": "values",
    "a: *nowhere": "line 1",
    "a: !!python/object/apply:os.system [ls]": "line 1",
    "a: !tag 3": "line 1",
    "models: mmoe\n\tseeds: 1": "line 2",
    "models: mmoe\nseeds: 1\n  epochs: 2": "line",
    "a: " + "[" * 3000: "nested too deep",
    "a: " + "{a: " * 3000: "nested too deep",
    "models: mmoe\x00": "YAML",
    "models: mmoe\n---\nmodels: ple": "YAML",
    "<<: 3": "YAML",
    "<<: {nope: 3}": "'nope'",
    "a: &a [1,1,1,1,1,1,1,1,1,1]\nb: &b [*a,*a,*a,*a,*a,*a,*a,*a,*a,*a]\n"
    "c: &c [*b,*b,*b,*b,*b,*b,*b,*b,*b,*b]\nd: &d [*c,*c,*c,*c,*c,*c,*c,*c,*c,*c]\n"
    "e: &e [*d,*d,*d,*d,*d,*d,*d,*d,*d,*d]\nf: [*e,*e,*e,*e,*e,*e,*e,*e,*e,*e]": "100,000 values",
    b"models: m\xe9moe": "UTF-8",
    b"\xff\xfem\x00o\x00": "UTF-8",
    b"PK\x03\x04\x00\x00\x00\x00": "grid.yaml",
    b"\x00" * 4096: "YAML",
    b"\x1f\x8b\x08\x00": "grid.yaml",
}

# what a flag would overrule is tried without flags
BARE_GRIDS = {
    "out: 3": "out",
    "out: [a]": "out",
    "out: {a: b}": "out",
    "dataset: 3": "dataset",
    "dataset: [census]": "dataset",
    "dataset: ''": "''",
    "dataset: censu": "'censu'",
}

# call of a function of the package to what the message names
CALLS = {
    "fit: a model that is not there": (lambda _: mtlkit.fit("mmo", DATA), USAGE, "'mmo'"),
    "fit: an empty name": (lambda _: mtlkit.fit("", DATA), USAGE, "''"),
    "fit: a number for a model": (lambda _: mtlkit.fit(3, DATA), USAGE, "model"),
    "fit: none for a model": (lambda _: mtlkit.fit(None, DATA), USAGE, "model"),
    "fit: a class of another kind": (lambda _: mtlkit.fit(dict, DATA), USAGE, "dict"),
    "fit: a wrong option": (lambda _: mtlkit.fit("mmoe[experts=0]", DATA), USAGE, "experts"),
    "fit: no data set": (lambda _: mtlkit.fit("mmoe", "censu"), USAGE, "'censu'"),
    "fit: a list for a data set": (lambda _: mtlkit.fit("mmoe", [DATA]), USAGE, "data"),
    "fit: no balancer": (lambda _: mtlkit.fit("mmoe", DATA, "uwll"), USAGE, "'uwll'"),
    "fit: a number for a balancer": (lambda _: mtlkit.fit("mmoe", DATA, 3), USAGE, "balancer"),
    "fit: an unknown setting": (lambda _: mtlkit.fit("mmoe", DATA, epoch=1), USAGE, "'epoch'"),
    "fit: an lr of 0": (lambda _: mtlkit.fit("mmoe", DATA, lr=0), USAGE, "lr"),
    "fit: a wrong device": (lambda _: mtlkit.fit("mmoe", DATA, device="gpu"), USAGE, "device"),
    "fit: a start": (lambda _: mtlkit.fit("mmoe", DATA, init_from="a"), USAGE, "init_from"),
    "fit: a task that is not there": (
        lambda _: mtlkit.fit("mmoe", DATA, task_weights={"task-9": 2.0}),
        USAGE,
        "task-9",
    ),
    "fit: a negative seed": (lambda _: mtlkit.fit("mmoe", DATA, seed=-1), USAGE, "seed"),
    "fit: a word for a seed": (lambda _: mtlkit.fit("mmoe", DATA, seed="a"), USAGE, "seed"),
    "load_dataset: no name": (lambda _: mtlkit.load_dataset(""), USAGE, "''"),
    "load_dataset: a wrong name": (lambda _: mtlkit.load_dataset("x"), USAGE, "'x'"),
    "load_dataset: a zero byte": (lambda _: mtlkit.load_dataset("a\0.py"), USAGE, "a"),
    "load_dataset: none": (lambda _: mtlkit.load_dataset(None), USAGE, "None"),
    "balancer: a wrong name": (lambda _: mtlkit.balancer("uwll", 2), USAGE, "'uwll'"),
    "balancer: no tasks": (lambda _: mtlkit.balancer("uwl", 0), USAGE, "task"),
    "balancer: tasks of one name": (lambda _: mtlkit.balancer("uwl", ["a", "a"]), USAGE, "a"),
    "balancer: a wrong option": (lambda _: mtlkit.balancer("uwl", 2, x=1), USAGE, "'x'"),
    "run_grid: no file": (lambda _: mtlkit.run_grid("nowhere.yaml"), USAGE, "nowhere.yaml"),
    "run_grid: a wrong model": (
        lambda place: mtlkit.run_grid(dataset=DATA, data_dir=place.home, models="mmo"),
        USAGE,
        "'mmo'",
    ),
    "run_grid: no seeds": (
        lambda place: mtlkit.run_grid(dataset=DATA, data_dir=place.home, seeds=0),
        USAGE,
        "seeds",
    ),
    "run_grid: an unknown setting": (
        lambda place: mtlkit.run_grid(dataset=DATA, data_dir=place.home, no_such_option=1),
        USAGE,
        "'no_such_option'",
    ),
    "run_grid: a data home that is a file": (
        lambda _: mtlkit.run_grid(dataset=DATA, data_dir="/dev/null"),
        MISSING,
        "/dev/null",
    ),
    "read_results: no folder": (lambda _: mtlkit.read_results("nowhere"), MISSING, "nowhere"),
    "read_results: a device": (lambda _: mtlkit.read_results("/dev/null"), MISSING, "null"),
    "read_results: a zero byte": (lambda _: mtlkit.read_results("a\0b"), USAGE, "a"),
    "write_report: no folder": (lambda _: mtlkit.write_report("nowhere"), MISSING, "nowhere"),
}


def cases() -> Iterator[Case]:
    """All bad words."""
    for flag, (values, word) in FLAGS.items():
        for value in values:
            name = f"--{flag} {value[:40]!r}"
            yield Case("flags", name, bench(f"--{flag}={value}"), USAGE, word)
    for table in ("nope.csv", "*.parquet", "no*"):
        yield Case("flags", f"--dataset {table!r}", bench(f"--dataset={table}"), MISSING, table)
    yield Case("flags", "--device cuda:99", bench("--device", "cuda:99"), MISSING, "cuda:99")
    for assignment, word in ASSIGNMENTS.items():
        name = f"--set {assignment[:40]!r}"
        yield Case("flags", name, bench("--set", assignment), USAGE, word)

    for words, (code, word) in OTHER_COMMANDS.items():
        with_home = ("--data-dir", "{home}") if words[0] == "fetch" else ()
        name = " ".join(words)[:60]
        yield Case("commands", name, command(*words, *with_home), code, word)

    for spec, word in MODEL_SPECS.items():
        yield Case("specs", f"model {spec!r}", bench(f"--models={spec}"), USAGE, word)
    for spec, word in BALANCER_SPECS.items():
        yield Case("specs", f"balancer {spec!r}", bench(f"--balancers={spec}"), USAGE, word)
    for spec, word in DATASET_SPECS.items():
        yield Case("specs", f"data set {spec!r}", bench(dataset=spec), USAGE, word)

    for text, word in GRIDS.items():
        act = bench("grid.yaml")
        yield Case("grid files", repr(text)[:60], act, USAGE, word, {"grid.yaml": text})

    bare = command("bench", "grid.yaml", "--data-dir", "{home}", "--dry-run")
    for text, word in BARE_GRIDS.items():
        yield Case("grid files", text, bare, USAGE, word, {"grid.yaml": text})

    for name, (function, code, word) in CALLS.items():
        yield Case("calls", name, call(function), code, word)


def option_cases() -> Iterator[Case]:
    """An option that no method has, and a word for each number, for all methods there are."""
    for registry, flag in ((MODELS, "--models"), (BALANCERS, "--balancers")):
        for name in registry.names():
            spec = f"{name}[no_such_option=1]"
            yield Case("options", spec, bench(flag, spec), USAGE, "'no_such_option'")
    for name, field in TrainingSettings.model_fields.items():
        if field.annotation in (int, float):
            act = bench("--set", f"{name}=word")
            yield Case("options", f"{name}=word", act, USAGE, f"training.{name}")
