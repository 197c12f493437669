from __future__ import annotations

import ast
import logging
from pathlib import Path

import pytest

import fusetune
from fusetune.errors import FusetuneError
from fusetune.optimization.storage import open_storage
from fusetune.recipe_file import parse
from fusetune.redaction import shown, tree_without_secrets, without_secrets

SECRET = "s3same-0pen"
MINIMAL = """
task: {data: somewhere, text: sentence, metrics: accuracy}
model: {name: minilm}
search: {trials: 0}
"""


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (f"postgresql://user:{SECRET}@host/db", "postgresql://user@host/db"),
        (f"postgresql+psycopg://u:a:b{SECRET}@h:5432/d", "postgresql+psycopg://u@h:5432/d"),
        (f"redis://:{SECRET}@host:6379/0", "redis://@host:6379/0"),
        (f"at postgresql://u:p@{SECRET}@host/db.", "at postgresql://u@host/db."),
        (f"https://{SECRET}@github.com/a/b", "https://***@github.com/a/b"),
        (f"s3://bucket/key?token={SECRET}&x=1", "s3://bucket/key?token=***&x=1"),
        (f"postgresql://h/d?user=u&password={SECRET}", "postgresql://h/d?user=u&password=***"),
        ("hf_abcdefghijklmnopqrstuvwx is it", "*** is it"),
        (f"Authorization: Bearer {SECRET}", "Authorization: Bearer ***"),
        (f"hub_token: {SECRET}\nseed: 41", "hub_token: ***\nseed: 41"),
        (f"{{'password': '{SECRET}'}}", "{'password': '***'}"),
        (f"client_secret={SECRET} api-key: {SECRET}", "client_secret=*** api-key: ***"),
        (f"aws_secret_access_key = {SECRET}", "aws_secret_access_key = ***"),
        (
            f"s3://b/k?X-Amz-Credential=a&X-Amz-Signature={SECRET}&n=1",
            "s3://b/k?X-Amz-Credential=***&X-Amz-Signature=***&n=1",
        ),
        (f"https://a.net/c?sv=2024&sig={SECRET}%3D", "https://a.net/c?sv=2024&sig=***"),
        (
            f"https://g/o?GoogleAccessId=x&X-Goog-Signature={SECRET}",
            "https://g/o?GoogleAccessId=x&X-Goog-Signature=***",
        ),
        (
            f"https://c/x?Policy={SECRET}&Key-Pair-Id=K",
            "https://c/x?Policy=***&Key-Pair-Id=***",
        ),
        (
            f"https://h/x?X-Amz-Security-Token={SECRET}#a",
            "https://h/x?X-Amz-Security-Token=***#a",
        ),
    ],
)
def test_secrets_are_taken_out_once_and_for_all(text: str, expected: str) -> None:
    assert without_secrets(text) == expected
    assert without_secrets(expected) == expected


@pytest.mark.parametrize(
    "text",
    [
        "http://localhost:8080/a@b",
        "https://huggingface.co/datasets/nyu-mll/glue",
        "mail me@example.org: tokens, max_new_tokens: 20, pad_token: [PAD]",
        "a secret: nobody knows",
        "sqlite:////tmp/trials.db",
        "hub_token: null",
    ],
)
def test_what_is_no_secret_stays(text: str) -> None:
    assert without_secrets(text) == text


def test_values_of_secret_variables_are_known(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", SECRET)
    monkeypatch.setenv("PGPASSWORD", "another-one")
    monkeypatch.setenv("TOKENIZERS_PARALLELISM", "parallel")
    assert without_secrets(f"{SECRET} another-one parallel") == "*** *** parallel"


@pytest.mark.parametrize(
    "name",
    ["MY_TOKENS", "GITHUB_TOKEN2", "DB_PASSWORD_OLD", "openai_api_key", "APIKEY", "MYSECRETS",
     "AWS_SECRET_ACCESS_KEY", "ACCESSKEY", "CLOUD_CREDENTIALS", "SSH_PASSWD_1"],
)  # fmt: skip
def test_a_variable_is_secret_by_every_name_that_the_words_cover(
    name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv(name, f"/{SECRET}+x=")  # base64 may begin with a slash
    assert without_secrets(f"it is /{SECRET}+x=.") == "it is ***."
    monkeypatch.setenv(name, str(tmp_path))  # a place is none
    assert without_secrets(f"in {tmp_path}") == f"in {tmp_path}"


def test_a_number_is_a_secret_too() -> None:
    tree = {"password": 12345678, "api_key": None, "hub_token": False, "max_tokens": 20}
    assert tree_without_secrets(tree) == {**tree, "password": "***"}


def test_messages_have_no_secrets_and_no_control_characters() -> None:
    error = FusetuneError(f"x://u:{SECRET}@h", f"\x1b[31mred\x00 {'long' * 10_000}")
    assert SECRET not in str(error)
    assert "\x1b" not in str(error)
    assert r"\x1b[31mred\x00" in error.hint
    assert len(str(error)) < 20_000
    assert shown("one\ttwo\nthree é 漢") == "one\ttwo\nthree é 漢"
    assert shown("\u202egnp.exe") == r"\u202egnp.exe"


def test_nested_values_with_a_secrets_name_are_hidden() -> None:
    tree = {"a": [{"password": "x y", "n": 1}, f"x://u:{SECRET}@h"], "token_type": "type"}
    hidden = tree_without_secrets(tree)
    assert hidden == {"a": [{"password": "***", "n": 1}, "x://u@h"], "token_type": "type"}


def test_a_stored_recipe_keeps_the_storage_without_its_password() -> None:
    url = f"postgresql://user:{SECRET}@host/db"
    recipe = parse(MINIMAL, [f"storage={url}", f"task.options={{api_key: {SECRET}}}"])
    assert recipe.storage == url
    stored = recipe.to_yaml()
    assert SECRET not in stored
    assert parse(stored).storage == "postgresql://user@host/db"
    assert parse(stored).to_yaml() == stored


def test_a_token_among_the_arguments_is_refused() -> None:
    with pytest.raises(FusetuneError, match=r"hub_token.*HF_TOKEN") as caught:
        parse(MINIMAL, [f"train.arguments.hub_token={SECRET}"])
    assert SECRET not in str(caught.value)


@pytest.mark.parametrize("url", ["postgresql://u:{}@127.0.0.1:1/x", "nonsense://u:a@{}@h/x"])
def test_a_storage_that_fails_does_not_tell_its_password(
    url: str, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.DEBUG), pytest.raises(FusetuneError) as caught:
        open_storage(url.format(SECRET))
    assert SECRET not in str(caught.value)
    assert SECRET not in caplog.text


def test_no_word_of_ours_is_taken_for_a_secret() -> None:
    """Every text of the program, with a sign in the place of what is filled in."""
    hidden = []
    for path in sorted(Path(fusetune.__file__).parent.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.JoinedStr):
                parts = [v.value if isinstance(v, ast.Constant) else "§" for v in node.values]
                text = "".join(map(str, parts))
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                text = node.value
            else:
                continue
            if without_secrets(text) != text:
                hidden.append((path.name, node.lineno, without_secrets(text)))
    assert not hidden


@pytest.mark.parametrize(
    ("override", "words"),
    [
        (f"train.arguments.hub_token={SECRET}", "a recipe is kept and shown"),
        (f"model.password={SECRET}", "unknown key"),
        (f"task.auth_token={SECRET}", "unknown key"),
        ("task.options.api_key=.nan", "must be a finite number"),
        (f"search.space.hf_token={SECRET}", "Input should be"),
    ],
)
def test_a_message_on_a_secret_s_key_keeps_its_words_and_not_the_secret(
    override: str, words: str
) -> None:
    with pytest.raises(FusetuneError) as caught:
        parse(MINIMAL, [override])
    assert words in str(caught.value)
    assert SECRET not in str(caught.value)
    assert "***" not in str(caught.value)


def test_a_secret_that_is_a_word_is_hidden_as_a_word(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PGPASSWORD", "postgres")
    assert without_secrets("postgresql://h/d") == "postgresql://h/d"
    assert without_secrets("it is 'postgres'; postgres") == "it is '***'; ***"
