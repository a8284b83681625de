"""Settings: what ships loads, what is misspelt is named, what is stronger wins, and nothing is executed."""

from __future__ import annotations

import json
import tomllib
from pathlib import Path
from typing import Any, get_args

import pytest
from pydantic import BaseModel, ValidationError

from medgan.config import Config, Modality, TaskName, known_settings, parse_setting
from medgan.errors import Refused
from medgan.resources import resource, resources

TASKS, MODALITIES = get_args(TaskName), get_args(Modality)


def refused(*, file: Path | None = None, settings: Any = (), modality: str = "ct", task: str = "lesion",
            **top: Any) -> Refused:
    with pytest.raises(Refused) as caught:
        Config.resolve(modality, task, file=file, settings=settings, **top)
    return caught.value


def toml(tmp_path: Path, text: str) -> Path:
    (tmp_path / "mine.toml").write_text(text)
    return tmp_path / "mine.toml"


def test_there_is_a_preset_for_every_modality_and_no_other() -> None:
    assert set(resources("configs")) == {f"{modality}.toml" for modality in MODALITIES}


@pytest.mark.parametrize("name", resources("configs"))
@pytest.mark.parametrize("task", TASKS)
def test_every_shipped_preset_loads_for_every_task(name: str, task: str) -> None:
    modality = name.removesuffix(".toml")
    config = Config.resolve(modality, task)
    assert (config.modality, config.task) == (modality, task)
    plain = tomllib.loads(resource("configs", name).read_text())
    # What the file says for this task arrives, so that no table of it is read in vain.
    common = {key: value for key, value in plain.items() if key not in TASKS}
    for section, values in {**common, **plain.get(task, {})}.items():
        for key, value in values.items():
            assert json.loads(json.dumps(config.model_dump()[section][key])) == plain.get(task, {}).get(
                section, {}).get(key, value)


@pytest.mark.parametrize("name", resources("configs"))
def test_a_preset_has_no_table_for_a_task_that_is_not_there(name: str) -> None:
    sections = set(Config.model_fields) | set(TASKS)
    assert set(tomllib.loads(resource("configs", name).read_text())) <= sections


@pytest.mark.parametrize(("text", "value"), [
    ("training.batch=8", 8), ("training.rate=1e-4", 1e-4), ("data.spacing_mm = 1.5 ", 1.5), ("device=cpu", "cpu"),
    ('device="cpu"', "cpu"), ("intensity.percentiles=[1, 99]", [1, 99]), ("a.b=x=y", "x=y"), ("a=", ""),
    ("flag=true", True), ("path=C:\\x", "C:\\x"), ("text=two words", "two words")])  # fmt: skip
def test_a_setting_is_read_as_toml_or_else_as_text(text: str, value: object) -> None:
    key, found = parse_setting(text)
    assert key == text.partition("=")[0].strip() and found == value and type(found) is type(value)


@pytest.mark.parametrize("text", ["training.batch", "=8", "", " = 3"])
def test_a_setting_without_name_or_value_is_refused(text: str) -> None:
    with pytest.raises(Refused, match="name=value") as caught:
        parse_setting(text)
    assert caught.value.code == "CFG_VALUE"


@pytest.mark.parametrize(("setting", "code", "said"), [
    ("training.bach=8", "CFG_UNKNOWN", "'training.bach'"),
    ("trainning.batch=8", "CFG_UNKNOWN", "'trainning'"),
    ("seeed=1", "CFG_UNKNOWN", "'seeed'"),
    ("training.batch.size=8", "CFG_VALUE", "training.batch = "),
    ("training=8", "CFG_VALUE", "training"),
    ("training.batch=0", "CFG_VALUE", "training.batch"),
    ("training.batch=many", "CFG_VALUE", "training.batch"),
    ("data.dims=4", "CFG_VALUE", "data.dims"),
    ("training.rate=nan", "CFG_VALUE", "training.rate"),
    ("training.minutes=inf", "CFG_VALUE", "training.minutes"),
    ("device=tpu", "CFG_VALUE", "device"),
    ("data.crop=100000", "CFG_VALUE", "data.crop")])  # fmt: skip
def test_a_wrong_setting_is_refused_by_name(setting: str, code: str, said: str) -> None:
    error = refused(settings=[setting])
    assert error.code == code and said in str(error)


def test_an_unknown_setting_is_answered_with_its_neighbours() -> None:
    assert "training.batch, training.rate" in refused(settings=["training.bach=8"]).fix
    assert "training.batch" not in refused(settings=["data.crops=8"]).fix
    assert "data.crop, " in refused(settings=["data.crops=8"]).fix
    assert set(known_settings()) == set(Config.model_fields)


@pytest.mark.parametrize("settings", [{"training.batch": 8}, {"training": {"batch": 8}}, ["training.batch=8"],
                                      ("training.batch = 8",)])
def test_settings_come_as_text_or_mapping(settings: Any) -> None:
    config = Config.resolve("ct", settings=settings)
    assert config.training.batch == 8 and config.training.rate == Config.resolve("ct").training.rate


def test_a_file_is_stronger_than_the_preset_and_a_single_setting_than_both(tmp_path: Path) -> None:
    preset = Config.resolve("ct")
    file = toml(tmp_path, "seed = 5\n[intensity]\nknots = [[-100.0, -1.0], [100.0, 1.0]]\n[training]\nbatch = 3\n")
    assert preset.intensity.knots is not None and len(preset.intensity.knots) == 4
    filed = Config.resolve("ct", file=file)
    assert filed.intensity.knots == ((-100.0, -1.0), (100.0, 1.0))
    assert (filed.training.batch, filed.seed, filed.training.images) == (3, 5, preset.training.images)
    last = Config.resolve("ct", file=file, settings=["training.batch=4", "training.batch=5", "seed=6"])
    assert (last.training.batch, last.seed) == (5, 6)
    assert Config.resolve("ct", file=file, settings=["seed=6"], seed=7).seed == 7
    assert Config.resolve("ct", file=file, settings=["seed=6"], seed=None).seed == 6


def test_a_task_table_is_stronger_than_the_common_one_and_only_for_its_task(tmp_path: Path) -> None:
    file = toml(tmp_path, "[training]\nbatch = 3\n[image.training]\nbatch = 4\n[image.data]\ncrop = 32\n")
    assert Config.resolve("ct", "image", file=file).training.batch == 4
    assert Config.resolve("ct", "image", file=file).data.crop == 32
    assert Config.resolve("ct", "lesion", file=file).training.batch == 3


def test_modality_and_task_of_the_call_are_the_ones_that_count(tmp_path: Path) -> None:
    file = toml(tmp_path, 'modality = "mr"\n')
    assert Config.resolve("ct", file=file, settings=["task=image"]).modality == "ct"
    assert Config.resolve("ct", file=file, settings=["task=image"]).task == "lesion"
    assert refused(modality="magic").code == refused(task="segment").code == "CFG_VALUE"


@pytest.mark.parametrize("text", [
    '_target_ = "os.system"\n', '[training]\n_target_ = "x"\n', 'device = "$__import__(\'os\')"\n',
    '[intensity]\nknots = ["$1"]\n', '[[data]]\n_target_ = "x"\n', '[lesion.training]\nprecision = "$x"\n'])
def test_what_other_tools_would_execute_is_refused(text: str, tmp_path: Path) -> None:
    assert refused(file=toml(tmp_path, text)).code == "CFG_UNSAFE"


@pytest.mark.parametrize(("content", "code"), [
    (b"training.batch: 8", "CFG_VALUE"), (b"\xff\xfe", "CFG_VALUE"), (b"a = " + b"[" * 5000, "CFG_VALUE"),
    (b"lesion = 3\n", "CFG_VALUE"), (b"[nowhere]\nx = 1\n", "CFG_UNKNOWN")])
def test_a_file_that_is_no_settings_file_is_refused(content: bytes, code: str, tmp_path: Path) -> None:
    (tmp_path / "mine.toml").write_bytes(content)
    assert refused(file=tmp_path / "mine.toml").code == code


def test_a_file_that_is_not_there_is_refused(tmp_path: Path) -> None:
    assert refused(file=tmp_path / "none.toml").code == refused(file=tmp_path).code == "FILE_MISSING"


@pytest.mark.parametrize("task", TASKS)
def test_settings_come_back_equal_from_a_run_folder(task: str) -> None:
    config = Config.resolve("ct", task, settings={"seed": 3, "augment.lesions_per_case": [1, 2],
                                                  "training.minutes": 1.5, "data.spacing_mm": 0.8})
    again = Config.checked(json.loads(json.dumps(config.model_dump(mode="json"))), where="config.json")
    assert again == config and hash(again) == hash(config)


def test_settings_cannot_be_changed() -> None:
    with pytest.raises(ValidationError):
        Config.resolve("ct").seed = 3  # type: ignore[misc]


def test_every_number_has_a_description_or_a_name_that_says_it() -> None:
    def leaves(model: type[BaseModel]) -> int:
        return sum(leaves(f.annotation) if isinstance(f.annotation, type) and issubclass(f.annotation, BaseModel)
                   else 1 for f in model.model_fields.values())

    assert leaves(Config) == len(_flat(Config().model_dump()))
    assert all(name == name.lower() for name in _flat(Config().model_dump()))


def _flat(values: dict[str, Any]) -> list[str]:
    return [f"{key}.{inner}" if inner else key for key, value in values.items()
            for inner in (_flat(value) if isinstance(value, dict) else [""])]


@pytest.mark.parametrize(("name", "text", "code"), [
    ("a.yaml", "!!python/object/apply:os.system ['touch canary']\n", "CFG_UNSAFE"),
    ("a.yml", "a: &a [x]\nb: &b [*a, *a]\n", "CFG_UNSAFE"),
    ("a.toml", "seed = '$import os'\n", "CFG_UNSAFE"),
    ("a.toml", "[training]\n'$x' = 1\n", "CFG_UNSAFE"),
    ("a.toml", "[network]\n_target_ = 'os.system'\n", "CFG_UNSAFE"),
    ("a.toml", f"seed = {'9' * 5_000}\n", "CFG_VALUE"),
    ("a.toml", f"{'a.' * 50_000}a = 1\n", "CFG_VALUE"),
    ("a.toml", f"b = {{{'a.' * 50_000}a = 1}}\n", "CFG_VALUE"),
    ("a.toml", f"a = {'[' * 100_000}\n", "CFG_VALUE"),
    ("a.toml", "!!python/object:x\n", "CFG_VALUE"),
    ("a.toml", f"# {'x' * 2**20}\n", "LIMIT"),
    ("a.json", "[" * 100_000, "CFG_VALUE"),
])  # fmt: skip
def test_files_that_attack_are_refused(name: str, text: str, code: str, tmp_path: Path) -> None:
    path = tmp_path / name
    path.write_text(text)
    error = refused(file=path)
    assert error.code == code and len(str(error)) < 1_000


@pytest.mark.parametrize("text", [f"seed={'9' * 5_000}", f"{'a.' * 5_000}a=1", f"a={'[' * 5_000}", "training.from=$x",
                                  f"a={{{'a.' * 5_000}a=1}}",
                                  f"training.batch={'x' * 5_000}"])
def test_settings_that_attack_are_refused(text: str) -> None:
    error = refused(settings=[text])
    assert error.code in ("CFG_VALUE", "CFG_UNKNOWN", "CFG_UNSAFE") and len(str(error)) < 2_000
