"""The knowledge folder in the hands of operators: what is taken, what is refused, and what nobody else can do."""

import os
import re
import stat
from collections.abc import Iterator
from html import unescape
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from lab.http import JSON, Answer, Client
from lab.people import add_people, database, unconfirm
from lab.server import Server

from chatapp.assistant import own_files
from chatapp.assistant.own_files import LARGEST_FILE, MOST_FILES, FileRefused, OwnFiles

BOUNDARY = "knowledge-upload-boundary"
OFFICE = "# The office\n\n## Espresso machine\nIt stands on the second floor.\n"


@pytest.fixture(autouse=True)
def nothing_left_running() -> None:
    """The shared server outlives each test; it ends with the module."""


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """One server with the built-in assistant."""
    with Server(tmp_path_factory.mktemp("knowledge"), assistant_pace=100000) as server:
        yield server


@pytest.fixture
def op(shared: Server) -> Client:
    """The operator, who has just entered the password."""
    return Client(shared.url).sign_in()


@pytest.fixture(scope="module")
def bo(shared: Server) -> Client:
    """Somebody who only chats."""
    add_people(shared, "bo@example.org")
    return Client(shared.url).sign_in("bo@example.org")


@pytest.fixture
def folder(shared: Server) -> Iterator[Path]:
    """The operator's folder, empty again at the end."""
    path = shared.data / "knowledge"
    yield path
    if path.is_symlink():
        path.unlink()
    for one in path.iterdir() if path.exists() else ():
        one.rmdir() if one.is_dir() and not one.is_symlink() else one.unlink()


@pytest.fixture
def own(tmp_path: Path) -> OwnFiles:
    """A folder without a server; one document is shipped."""
    (tmp_path / "shipped").mkdir()
    (tmp_path / "shipped" / "start.md").write_text("# Start\nShipped.\n")
    return OwnFiles(tmp_path / "own", tmp_path / "shipped")


def upload(client: Client, *files: tuple[str, bytes], token: str | None = None, json: bool = False) -> Answer:
    """Post files as a browser does."""
    parts = [
        f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="csrf_token"\r\n\r\n{token or client.token}\r\n'.encode()
    ]
    for name, content in files:
        head = f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="file"; filename="{name}"\r\n'
        parts.append(head.encode() + b"Content-Type: text/markdown\r\n\r\n" + content + b"\r\n")
    body = b"".join([*parts, f"--{BOUNDARY}--\r\n".encode()])
    headers = {"Content-Type": f"multipart/form-data; boundary={BOUNDARY}", "Origin": client.url}
    return client.request("POST", "/knowledge/files/upload", body.decode("latin-1"), headers | (JSON if json else {}))


def said(answer: Answer) -> str:
    """The words of the page's alert or outcome."""
    found = re.findall(r'role="(?:alert|status)">(.*?)</p>', answer.text, re.S)
    return " ".join(unescape(re.sub("<[^>]+>", " ", " ".join(found))).split())


def after(client: Client, answer: Answer) -> Answer:
    """The page that a form's answer leads to."""
    assert answer.status == 303, (answer.status, said(answer))
    return client.get(answer.headers["Location"])


def audited(server: Server, action: str) -> list[str]:
    with database(server) as connection:
        query = "SELECT detail FROM audit WHERE action = ? AND actor_id IS NOT NULL ORDER BY id"
        return [row[0] for row in connection.execute(query, (action,))]


# Who may


def test_only_operators_change_documents(shared: Server, op: Client, bo: Client, folder: Path) -> None:
    page = bo.get("/knowledge").text
    assert "Add documents" not in page and "Asked and not found" not in page
    nothing = bo.post("/nothing-of-this-name")
    for client in (bo, Client(shared.url)):
        for path in ("/files/upload", "/files/remove", "/files/preview", "/questions/1/forget", "//files/upload"):
            answer = client.post(f"/knowledge{path}", name="start.md", source="x")
            assert answer.status == 404, path
            assert client.request("GET", f"/knowledge{path}").status == 404, path
    assert bo.post("/knowledge/files/upload", JSON).status == nothing.status == 404
    assert upload(bo, ("mine.md", b"# Mine")).status == 404 and not (folder / "mine.md").exists()
    assert "Add documents" in op.get("/knowledge").text


def test_changes_need_the_token_and_the_password_of_late(shared: Server, op: Client, folder: Path) -> None:
    assert upload(op, ("mine.md", b"# Mine"), token="wrong").status == 400
    cross = {"Sec-Fetch-Site": "cross-site", "Origin": "http://evil.example"}
    assert op.post("/knowledge/files/remove", cross, name="mine.md").status == 403
    unconfirm(shared)
    for answer in (upload(op, ("mine.md", b"# Mine")), op.post("/knowledge/files/remove", name="mine.md")):
        assert answer.status == 303
        assert urlsplit(answer.headers["Location"])[2:4] == ("/account/confirm", "next=/knowledge")
    assert upload(op, ("mine.md", b"# Mine"), json=True).json["error"]["code"] == "confirm"
    assert not (folder / "mine.md").exists()
    page = op.get("/knowledge").page
    assert page.one("input", name="password") and not page.all("input", name="file")


# What is taken


def test_an_upload_is_found_replaced_and_removed(shared: Server, op: Client, folder: Path) -> None:
    answer = after(op, upload(op, ("office.md", OFFICE.encode()), ("glossary.txt", b"brew: espresso\n")))
    assert said(answer) == "Added: office.md, glossary.txt. The assistant finds it within seconds."
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert stat.S_IMODE((folder / "office.md").stat().st_mode) == 0o600
    tried = op.get("/knowledge?q=where+is+the+espresso+machine")
    assert said(tried).startswith("Quoted.") and "/knowledge/office#espresso-machine" in tried.text
    assert re.search(r"score \d+\.\d", tried.text) and "has 100 % of the question" in tried.text
    answer = after(op, upload(op, ("office.md", b"# The office\n\n## Parking\nRing.\n")))
    assert said(answer).startswith("Replaced: office.md.")
    assert "Ring." in op.get("/knowledge/office").text
    assert "The office" in op.get("/knowledge").text
    assert said(after(op, op.post("/knowledge/files/remove", name="office.md"))) == "Removed: office.md."
    assert op.get("/knowledge/office").status == 404
    assert op.post("/knowledge/files/remove", JSON, name="office.md").status == 404
    assert audited(shared, "knowledge-added")[-2:] == ["office.md", "glossary.txt"]
    assert audited(shared, "knowledge-replaced")[-1:] == audited(shared, "knowledge-removed")[-1:] == ["office.md"]
    audit = op.get("/audit?action=knowledge-removed").text
    assert "document removed" in audit and "office.md" in audit


def test_an_own_document_stands_in_for_a_shipped_one_until_it_is_removed(op: Client, folder: Path) -> None:
    assert "Remove" not in op.get("/knowledge").text, "a shipped document cannot be removed"
    upload(op, ("privacy.md", b"# Our privacy\n\nAsk Jo.\n"), ("sizing.md", b""))
    page = op.get("/knowledge").text
    assert "Yours, in place of a shipped one" in page and "Yours, empty: hides a shipped one" in page
    assert "Our privacy" in op.get("/knowledge/privacy").text and op.get("/knowledge/sizing").status == 404
    answer = after(op, op.post("/knowledge/files/remove", name="privacy.md"))
    assert "The document that ships with the product is back" in said(answer)
    assert "Where is my data stored" in op.get("/knowledge/privacy").text
    assert op.post("/knowledge/files/remove", JSON, name="sizing.md").json == {"removed": "sizing.md", "shipped": True}
    assert op.get("/knowledge/sizing").status == 200
    assert op.post("/knowledge/files/remove", name="start.md").status == 404, "only own files"


BAD_NAMES = [
    "../start.md",
    "..%2fstart.md",
    "/etc/passwd.md",
    "a/b.md",
    "C:\\\\notes.md",
    ".hidden.md",
    "-rf.md",
    "notes.MD",
    "notes.txt",
    "Glossary.txt",
    "notes.md.exe",
    "notes.md\u00a0",
    "ｎotes.md",
    "notеs.md",
    "no\u202etes.md",
    "ü.md",
    "a" * 62 + ".md",
    "notes",
    "con.md",
    "AUX .md",
    "com1.md",
]


@pytest.mark.parametrize("name", BAD_NAMES)
def test_other_names_are_refused_with_the_reason(op: Client, folder: Path, name: str) -> None:
    before = sorted(folder.parent.rglob("*.md"))
    answer = upload(op, ("good.md", b"# Good"), (name, b"# Bad"))
    assert answer.status == 422 and "Rename" in said(answer), said(answer)
    shown = name.replace("\\\\", "\\")
    assert (shown if name.isprintable() else ascii(shown)[1:-1])[:20] in said(answer)
    assert ("CYRILLIC SMALL LETTER IE" in said(answer)) == (name == "notеs.md")
    assert sorted(folder.parent.rglob("*.md")) == before, "nothing of it is taken"


@pytest.mark.parametrize(
    ("files", "words"),
    [
        ([], "No file was chosen"),
        ([("a.md", b"x" * (LARGEST_FILE + 1))], "“a.md” is larger than 1 MB. Split it"),
        ([("a.md", "Ä\nÖ".encode("latin-1"))], "“a.md” is not text in UTF-8 (line 1). Save it as UTF-8"),
        ([("a.md", "good\nnot".encode("utf-16"))], "“a.md” is not text in UTF-8 (line 1)"),
        ([("a.md", b"one\ntwo\0")], "“a.md” is not text in UTF-8 (line 2)"),
        ([("a.md", b"fine\n\n" + b"[" * 50_001)], "from line 3 on. Split it by empty lines"),
        ([("a.md", b"# a\n" * 2001)], "more than 2000 headings"),
        ([("A b.md", b"x"), ("a-b.md", b"x")], "“a-b.md” would have the same address as “A b.md”"),
        ([(f"{number}.md", b"x") for number in range(MOST_FILES + 1)], f"more than {MOST_FILES} files"),
    ],
)
def test_other_contents_are_refused_with_the_reason(
    op: Client, folder: Path, files: list[tuple[str, bytes]], words: str
) -> None:
    answer = upload(op, *files)
    assert answer.status == 422 and words in said(answer), said(answer)
    assert not list(folder.iterdir() if folder.exists() else ())


def test_the_largest_file_is_taken_and_a_larger_upload_answered_in_words(op: Client, folder: Path) -> None:
    assert upload(op, ("a.md", (b"x" * 999 + b"\n\n") * 999)).status == 303
    answer = upload(op, *((f"{number}.md", b"x" * LARGEST_FILE) for number in range(9)))
    assert answer.status == 413 and "at most 8 MB, and 1 MB for each file" in answer.text
    assert [path.name for path in folder.iterdir()] == ["a.md"]


def test_two_names_of_one_address_are_refused(op: Client, folder: Path) -> None:
    upload(op, ("My notes.md", b"# Mine"))
    answer = upload(op, ("my-notes.md", b"# Other"))
    assert "“my-notes.md” would have the same address as “My notes.md”" in said(answer)
    assert [path.name for path in folder.iterdir()] == ["My notes.md"]


# What somebody with a shell put there


def test_links_are_neither_followed_nor_replaced(op: Client, folder: Path, tmp_path: Path) -> None:
    upload(op, ("a.md", b"# A"))
    target = tmp_path / "target.md"
    target.write_text("# Elsewhere")
    (folder / "linked.md").symlink_to(target)
    (folder / "dangling.md").symlink_to(tmp_path / "made-by-it.md")
    (folder / "folder.md").mkdir()
    for name in ("linked.md", "dangling.md", "folder.md"):
        answer = upload(op, ("b.md", b"# B"), (name, b"# Mine"))
        assert answer.status == 422 and "no plain file" in said(answer), name
        answer = op.post("/knowledge/files/remove", name=name)
        assert answer.status == 422 and "no plain file" in said(answer), name
    assert target.read_text() == "# Elsewhere" and not (tmp_path / "made-by-it.md").exists()
    assert not (folder / "b.md").exists() and (folder / "linked.md").is_symlink()
    assert "No plain file" in op.get("/knowledge").text


def test_a_folder_that_is_a_link_is_left_alone(op: Client, folder: Path, tmp_path: Path) -> None:
    if folder.exists():
        folder.rmdir()
    folder.symlink_to(tmp_path)
    (tmp_path / "theirs.md").write_text("# Theirs")
    for answer in (upload(op, ("a.md", b"# A")), op.post("/knowledge/files/remove", name="theirs.md")):
        assert answer.status == 422 and "is a link that somebody made" in said(answer)
    assert [path.name for path in tmp_path.iterdir()] == ["theirs.md"]


# What goes wrong


def test_a_full_disk_leaves_nothing_half_written(own: OwnFiles, monkeypatch: pytest.MonkeyPatch) -> None:
    with own.staging([("a.md", b"before")]) as staged:
        staged.publish()
    folder, write = own._folder, own_files._write

    def full(descriptor: int, name: str, content: bytes) -> None:
        write(descriptor, name, content[:3])
        if content == b"second":
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(own_files, "_write", full)
    with pytest.raises(FileRefused) as refused, own.staging([("a.md", b"first"), ("b.md", b"second")]):
        pass
    assert refused.value.reason == "full"
    assert [(path.name, path.read_bytes()) for path in folder.iterdir()] == [("a.md", b"before")]


def test_what_is_not_recorded_does_not_happen(own: OwnFiles) -> None:
    """The audit is written before the files are visible."""
    with pytest.raises(RuntimeError), own.staging([("a.md", b"x")]):
        raise RuntimeError
    assert list(own._folder.iterdir()) == []
    with own.staging([("start.md", b"x")]) as staged:
        staged.publish()
    with pytest.raises(RuntimeError), own.removing("start.md"):
        raise RuntimeError
    assert [one.origin for one in own.listed()] == ["replaces"]


def test_what_a_crash_left_goes_later(own: OwnFiles) -> None:
    with own.staging([("a.md", b"x")]) as staged:
        staged.publish()
    old, new = own._folder / ".upload-old", own._folder / ".upload-new"
    old.touch(), new.touch()
    os.utime(old, (1, 1))
    with own.staging([("a.md", b"y")]) as staged:
        staged.publish()
    assert not old.exists() and new.exists()


def test_a_folder_that_cannot_be_written_is_said(own: OwnFiles, monkeypatch: pytest.MonkeyPatch) -> None:
    def denied(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("os.mkdir", denied)
    with pytest.raises(FileRefused) as refused, own.staging([("a.md", b"x")]):
        pass
    assert (refused.value.reason, refused.value.detail) == ("failed", "Permission denied")


# Preview and try


def test_a_preview_shows_the_passages_and_stores_nothing(op: Client, folder: Path) -> None:
    source = f"{OFFICE}\nAsked as: where is the coffee\n\n## Empty\n\n<script>alert(1)</script>"
    answer = op.post("/knowledge/files/preview", source=source)
    assert answer.status == 200
    assert "2 passages" in answer.text and "asked as: where is the coffee" in answer.text
    assert answer.page.one("textarea", name="source").text.strip() == source
    shown = answer.page.one("article").text
    assert "It stands on the second floor" in shown and "Asked as" not in shown
    assert "<script>alert" not in answer.text
    assert not list(folder.iterdir() if folder.exists() else ())
    assert "Send a part of it" in op.post("/knowledge/files/preview", source="x" * 600_000).text
    for source in ("x" * 100_001, "[" * 60_000):
        assert op.post("/knowledge/files/preview", JSON, source=source).status == 422


def test_a_tried_question_says_what_is_not_sure(op: Client) -> None:
    assert said(op.get("/knowledge?q=xylophone+zzyzx")).startswith("Nothing found.")
    assert said(op.get("/knowledge?q=how+do+I+cook+a+backup+soup+for+twelve+hungry+guests")).startswith("Not sure.")
