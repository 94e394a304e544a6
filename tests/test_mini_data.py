"""Mini benchmarks: the hub's columns and types, the same bytes for a seed, atomic and cached."""

from __future__ import annotations

import json
import shutil

import pytest

from vtprune.harness.evaluation.data import mini, source
from vtprune.harness.evaluation.data.mini import world

COLUMNS = {
    "textvqa": "image_id question_id question question_tokens image image_width image_height "
    "flickr_original_url flickr_300k_url answers image_classes set_name ocr_tokens",
    "gqa": "id imageId question answer fullAnswer isBalanced groups entailed equivalent types "
    "annotations semantic semanticStr",
    "vqav2": "question_type multiple_choice_answer answers image_id answer_type question_id "
    "question image",
    "mme": "question_id image question answer category",
    "pope": "id question_id question answer image_source image category",
    "mmbench_en": "index question hint answer A B C D category image source L2-category comment "
    "split",
    "chartqa": "type question answer image",
    "docvqa": "questionId question question_types image docId ucsf_document_id "
    "ucsf_document_page_no answers data_split",
    "scienceqa": "image question choices answer hint task grade subject topic category skill "
    "lecture solution",
    "vizwiz": "question_id image question answers category",
    "seedbench": "answer choice_a choice_b choice_c choice_d data_id data_type image question "
    "question_id question_type_id segment",
    "mmvet": "question_id image question answer image_source capability",
    "ocrbench": "dataset question question_type answer image",
    "ai2d": "question options answer image",
    "mmstar": "index question image answer category l2_category meta_info",
    "realworldqa": "image image_path question answer",
    "infovqa": "questionId question answers answer_type image image_url operation/reasoning ocr "
    "data_split",
    "hallusion_bench": "category subcategory visual_input set_id figure_id sample_note question_id "
    "question gt_answer_details gt_answer filename image",
    "mmmu": "id question options explanation image_1 image_2 image_3 image_4 image_5 image_6 "
    "image_7 img_type answer topic_difficulty question_type subfield",
    "refcoco": "question_id image question answer segmentation bbox iscrowd file_name",
}
COLUMNS["refcoco_plus"] = COLUMNS["refcocog"] = COLUMNS["refcoco"]
COLUMNS["mmbench_cn"] = COLUMNS["mmbench_en"]
TYPES = {
    "textvqa": {"question_id": "int32", "image_width": "int32"},
    "gqa": {"isBalanced": "bool"},
    "vqav2": {"question_id": "int64", "image_id": "int64"},
    "mmbench_en": {"index": "int64", "A": "string"},
    "docvqa": {"docId": "int64", "questionId": "string"},
    "scienceqa": {"answer": "int8"},
    "seedbench": {"question_type_id": "int16"},
}


@pytest.mark.parametrize("bench", mini.BENCHES)
def test_columns_and_types(bench):
    from datasets import Image, List, Value

    table = mini.tables(bench, 0, 8)[0]
    data = table.dataset()
    assert list(data.features) == COLUMNS[bench].split()
    for name, dtype in TYPES.get(bench, {}).items():
        assert data.features[name] == Value(dtype)
    if bench == "seedbench":
        assert data.features["image"] == List(Image())
    elif bench != "gqa":
        assert isinstance(data.features["image_1" if bench == "mmmu" else "image"], Image)
    assert len(data) == 8


@pytest.mark.parametrize("bench", mini.BENCHES)
def test_same_bytes_for_a_seed(bench, tmp_path):
    folders = [mini.build(bench, tmp_path / name, seed=3, n=6) for name in "ab"]
    files = [sorted(f.rglob("*.parquet")) for f in folders]
    assert files[0] and len(files[0]) == len(files[1])
    for one, two in zip(*files, strict=True):
        assert one.relative_to(folders[0]) == two.relative_to(folders[1])
        assert one.read_bytes() == two.read_bytes()
    assert not list(tmp_path.rglob(".write-*"))


def test_layout_and_sizes(tmp_path):
    mini.build("textvqa", tmp_path, n=4)
    mini.build("gqa", tmp_path, n=4)
    mini.build("docvqa", tmp_path, n=4)
    names = {str(p.relative_to(tmp_path)) for p in tmp_path.rglob("*.parquet")}
    assert names == {
        "lmms-lab-encoder/textvqa/data/validation-00000-of-00001.parquet",
        "lmms-lab-encoder/GQA/testdev_balanced_instructions/testdev-00000-of-00001.parquet",
        "lmms-lab-encoder/GQA/testdev_balanced_images/testdev-00000-of-00001.parquet",
        "lmms-lab-encoder/DocVQA/DocVQA/validation-00000-of-00001.parquet",
    }
    for bench in mini.BENCHES:
        assert 64 <= mini.GENERATORS[bench][0] <= 200


def test_images_survive_parquet(tmp_path):
    from datasets import load_dataset

    folder = mini.build("textvqa", tmp_path / "data", n=3)
    file = str(next(folder.rglob("*.parquet")))
    rows = load_dataset("parquet", data_files=file, split="train", cache_dir=str(tmp_path / "hf"))
    assert rows[0]["image"].size == (112, 112)
    assert len(rows[0]["answers"]) == 10 and len(set(rows[0]["answers"])) == 1


def test_a_second_build_writes_nothing_and_another_size_everything(tmp_path):
    folder = mini.build("pope", tmp_path, n=4)
    file = next(folder.rglob("*.parquet"))
    before = file.stat().st_mtime_ns
    assert mini.build("pope", tmp_path, n=4) == folder
    assert file.stat().st_mtime_ns == before
    mini.build("pope", tmp_path, n=6)
    assert json.loads((folder / ".pope.json").read_text(encoding="utf-8"))["n"] == 6
    assert file.stat().st_mtime_ns != before


def test_pairs_and_balance():
    rows = mini.tables("mme", 0, 20)[0].rows
    for yes, no in zip(rows[::2], rows[1::2], strict=True):
        assert yes["question_id"] == no["question_id"]
        assert (yes["answer"], no["answer"]) == ("Yes", "No")
    rows = mini.tables("pope", 0, 24)[0].rows
    assert sum(r["answer"] == "yes" for r in rows) == 12
    assert {r["category"] for r in rows} == {"adversarial", "popular", "random"}


def test_words_are_held_out():
    texts = {r["answers"][0].upper() for r in mini.tables("textvqa", 0, 64)[0].rows}
    assert not texts & set(world.TRAIN_WORDS)
    assert texts & set(world.EVAL_WORDS)


def test_unknown_name_is_one_line():
    with pytest.raises(ValueError, match="no mini benchmark 'tetvqa'"):
        mini.build("tetvqa", None)


@pytest.mark.parametrize("name", ["mini/glyphs.npz", "mini/questions.py", "tables.py"])
def test_a_changed_generator_never_serves_old_rows(name, tmp_path, monkeypatch):
    """Whatever a drawn picture is made of is in the name of the folder it is kept in."""
    here = tmp_path / "data"
    shutil.copytree(source._HERE, here)
    monkeypatch.setattr(source, "_HERE", here)
    before = source._stamp(0, 8)
    with (here / name).open("ab") as stream:
        stream.write(b"\n")
    assert source._stamp(0, 8) != before


def test_two_of_three_questions_of_mmbench_cn_hold_chinese_and_both_engines_say_so():
    from vtprune.harness.evaluation.engines import vlm_table

    (table,) = mini.tables("mmbench_cn", 0, 9)
    chinese = [vlm_table._is_chinese(row["question"]) for row in table.rows]
    assert chinese == [True, True, False] * 3
    wish = "Please select the correct answer from the options above."
    asked = f"Question: {table.rows[0]['question']}\nOptions:\nA. red\n"
    assert vlm_table._qwen_choice(asked + wish) == asked + "请直接回答选项字母。"
    assert vlm_table._qwen_choice(f"Question: What?\n{wish}") == f"Question: What?\n{wish}"
