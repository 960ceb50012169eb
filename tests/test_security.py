"""What the code promises not to do, read off its syntax trees; and what a notebook, an archive, a lock file may not do.

Downloads (https only, also after redirects; checksums) are in test_download.py and test_faults_data.py.
"""

import ast
import json
import re
from collections.abc import Iterator
from pathlib import Path

import nbformat
import pytest

from decoupled import publish

ROOT = Path(__file__).parents[1]
PICKLES = {"pickle", "_pickle", "cPickle", "dill", "cloudpickle", "shelve", "marshal", "joblib", "jsonpickle"}
NETWORK = {"requests", "urllib.request", "http.client", "ftplib", "smtplib", "telnetlib", "urllib3", "httpx", "aiohttp"}
EXECUTING = {"eval", "exec", "compile", "__import__", "execfile"}
PROCESSES = {"run", "Popen", "call", "check_call", "check_output"}
SHELLS = {"os.system", "os.popen", "subprocess.getoutput", "subprocess.getstatusoutput", "commands.getoutput"}
UNSAFE = {
    "yaml.load": "may build any object; yaml.safe_load", "yaml.unsafe_load": "builds any object",
    "tempfile.mktemp": "leaves time for another file", "torch.hub.load": "runs code from elsewhere",
    "pandas.read_pickle": "unpickles", "pd.read_pickle": "unpickles", "pd.eval": "evaluates",
    "importlib.reload": "runs",
}  # fmt: skip


def dotted(node: ast.AST) -> str:
    """`a.b.c` of a name or of an attribute; '?' where it begins with something else."""
    if isinstance(node, ast.Attribute):
        return f"{dotted(node.value)}.{node.attr}"
    return node.id if isinstance(node, ast.Name) else "?"


def problems(text: str) -> Iterator[str]:
    """What a source text does of what nothing here may do."""
    tree = ast.parse(text)
    lists = {
        target.id
        for node in ast.walk(tree)
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.List)
        for target in node.targets
        if isinstance(target, ast.Name)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Import | ast.ImportFrom):
            names = [alias.name for alias in node.names]
            if isinstance(node, ast.ImportFrom):
                names = [str(node.module), *(f"{node.module}.{name}" for name in names)]
            yield from (f"imports {name}" for name in names if name.split(".")[0] in PICKLES or name in NETWORK)
        if isinstance(node, ast.Call):
            yield from call_problems(node, lists)


def call_problems(node: ast.Call, lists: set[str]) -> Iterator[str]:
    name, last = dotted(node.func), dotted(node.func).split(".")[-1]
    options = {keyword.arg: keyword.value for keyword in node.keywords}

    def is_constant(option: str, value: object) -> bool:
        given = options.get(option)
        return isinstance(given, ast.Constant) and given.value is value

    if name in EXECUTING or (name.endswith((".eval", ".exec")) and (node.args or options)):
        yield f"{name}() executes text"
    if name in SHELLS or name.startswith(("os.spawn", "os.exec")):
        yield f"{name}() starts a process by text"
    if name in UNSAFE:
        yield f"{name}: {UNSAFE[name]}"
    if name == "torch.load" and not is_constant("weights_only", True):
        yield "torch.load without weights_only=True"
    if "allow_pickle" in options and not is_constant("allow_pickle", False):
        yield "allow_pickle"
    if last == "extractall" or name == "tar.extract":
        yield f"{name}() writes where an archive says"
    if "shell" in options and not is_constant("shell", False):
        yield "shell=True"
    if name.startswith("subprocess.") and last in PROCESSES:
        words = node.args[0] if node.args else options.get("args")
        if not (isinstance(words, ast.List) or (isinstance(words, ast.Name) and words.id in lists)):
            yield f"{name}() is not given a list of words"


def sources() -> dict[str, str]:
    """Every Python text of the project by its path; notebooks cell by cell, without the lines of IPython."""
    found = {}
    for folder in ("src", "benchmarks", "book/_ext", "tests"):
        for path in (ROOT / folder).rglob("*.py"):
            found[str(path.relative_to(ROOT))] = path.read_text()
    for path in (ROOT / "notebooks").glob("*.ipynb"):
        for cell in json.loads(path.read_text())["cells"]:
            if cell["cell_type"] == "code":
                lines = "".join(cell["source"]).splitlines()
                assert not any(line.lstrip().startswith(("!", "%", "?")) for line in lines), (
                    f"{path}: a shell or a magic"
                )
                found[f"notebooks/{path.name}#{cell['id']}"] = "\n".join(lines)
    return found


SOURCES = sources()
OURS = {name: text for name, text in SOURCES.items() if not name.startswith("tests/")}
# a user's own configuration file, which is a program; and the entry point of Parsl
RUNS_FILES = {"src/decoupled/cluster.py"}


def test_nothing_unpickles_evaluates_or_starts_a_shell():
    assert {name.split("/")[0] for name in OURS} == {"src", "benchmarks", "book", "notebooks"} and len(OURS) > 100
    assert {f"{name}: {problem}" for name, text in OURS.items() for problem in problems(text)} == set()


def test_only_the_downloader_speaks_to_the_network():
    named = {
        name
        for name, text in OURS.items()
        if re.search(r"^\s*(import|from) (pooch|socket|urllib\.request)\b", text, re.M)
    }
    assert named == {"src/decoupled/data.py"}


def test_files_are_run_as_programs_in_one_place():
    pattern = r"\brunpy\.run_|\bimport_module\b|\bspec_from_file|\bexec_module\b"
    assert {name for name, text in OURS.items() if re.search(pattern, text)} == RUNS_FILES


BAD = [
    "import pickle", "from pickle import loads", "import dill as d", "import requests",
    "from urllib.request import urlopen",
    "from urllib import request", "eval(text)", "exec(text)", "frame.eval('a + b')", "builtins.exec(x)",
    "__import__(name)", "compile(x, '', 'exec')",
    "torch.load(f)", "torch.load(f, weights_only=False)", "torch.load(f, weights_only=flag)",
    "np.load(f, allow_pickle=True)",
    "np.load(f, allow_pickle=flag)", "os.system('ls')", "os.popen(x)", "subprocess.run('ls')",
    "subprocess.run(f'ls {x}')",
    "subprocess.run(line, check=True)", "subprocess.run(['ls'], shell=True)", "subprocess.Popen(args=text)",
    "tar.extractall(x)",
    "zipfile.ZipFile(x).extractall()", "yaml.load(x, Loader)", "tempfile.mktemp()", "pd.read_pickle(x)",
    "subprocess.getoutput(x)",
]  # fmt: skip
GOOD = [
    "model.eval()", "torch.load(f, weights_only=True)", "np.load(f, allow_pickle=False)", "np.load(f)",
    "yaml.safe_load(x)",
    "subprocess.run(['ls', x])", "words = ['ls']\nsubprocess.run(words)", "torch.compile(f)", "re.compile(x)",
    "import urllib.parse",
]  # fmt: skip


@pytest.mark.parametrize("text", BAD)
def test_what_must_not_be_is_seen(text):
    assert list(problems(text))


@pytest.mark.parametrize("text", GOOD)
def test_what_may_be_is_let_through(text):
    assert not list(problems(text))


# --- notebooks --------------------------------------------------------------------------------------------------------

HOSTILE = [
    "__import__('os').system('touch escaped')", '"; open("escaped", "w"); "', "'; open('escaped', 'w'); '",
    '"""\nopen("escaped", "w")\n"""', "\\\"; open('escaped', 'w') #", "\\", "\\\\\"",
    "a\nopen('escaped', 'w')", "{open('escaped', 'w')}",
    "!touch escaped", "%system touch escaped", "$(touch escaped)", "`touch escaped`", "\x00", "\x1b[2J",
    "\u2028open('escaped', 'w')", "é\U0001f600",
]  # fmt: skip


KERNEL = {"name": "python3", "display_name": "Python 3", "language": "python"}


def test_parameters_arrive_as_values_and_are_never_run(tmp_path, monkeypatch):
    """For real, through papermill and a kernel: the notebook says what it was given."""
    monkeypatch.chdir(tmp_path)
    cells = [
        nbformat.v4.new_code_cell('text = ""\nitems = []\ntable = {}', id="p", metadata={"tags": ["parameters"]}),
        nbformat.v4.new_code_cell("import json\nprint(json.dumps([text, items, table]))", id="show"),
    ]
    notebook = nbformat.v4.new_notebook(cells=cells, metadata={"kernelspec": KERNEL})
    nbformat.write(notebook, "a.ipynb")
    given = {"text": "\n".join(HOSTILE), "items": HOSTILE, "table": {text: [text] for text in HOSTILE}}
    publish.execute(Path("a.ipynb"), given, Path("out/a.ipynb"))
    (output,) = nbformat.read("out/a.ipynb", 4).cells[-1]["outputs"]
    assert json.loads(output["text"]) == [given["text"], given["items"], given["table"]]
    assert not list(tmp_path.rglob("escaped"))


@pytest.mark.parametrize(
    "name", ["open('escaped', 'w')", "profile = 1; x", "profile\nimport os", "__builtins__", "print"]
)
def test_the_name_of_a_parameter_is_never_run(name):
    with pytest.raises(publish.NotebookError, match="unknown parameter"):
        publish.check_parameters(ROOT / "notebooks/grids.ipynb", {name: "auto"})


@pytest.mark.parametrize("value", [HOSTILE[0], ["True"], 1, None, {"a": 1}])
def test_a_parameter_of_another_type_is_refused(value):
    with pytest.raises(publish.NotebookError, match="parameter train must be bool"):
        publish.check_parameters(ROOT / "notebooks/grids.ipynb", {"train": value})


# --- what is installed ------------------------------------------------------------------------------------------------


def requirements(text: str) -> Iterator[tuple[str, list[str]]]:
    """Each requirement of a lock file with its hashes."""
    text = re.sub(r"^\s*#.*\n", "", text, flags=re.M).replace("\\\n", " ")
    for line in filter(str.strip, text.splitlines()):
        yield line.split(" --hash")[0].strip(), re.findall(r"--hash=(\S+)", line)


def test_every_locked_requirement_has_an_exact_version_and_hashes():
    found = list(requirements((ROOT / "requirements.lock").read_text()))
    assert len(found) > 100
    for line, hashes in found:
        assert re.match(r"[A-Za-z0-9._\[\]-]+==[^*\s]+( ;|$)", line), line
        assert hashes and all(re.fullmatch(r"sha256:[0-9a-f]{64}", one) for one in hashes), line
    assert list(requirements("a==1 \\\n    --hash=sha256:00\n    # via b\nb\n")) == [("a==1", ["sha256:00"]), ("b", [])]


def test_make_installs_nothing_but_what_is_locked_or_pinned():
    """torch has no hash: its builds for CPU and CUDA share one version."""
    text = (ROOT / "Makefile").read_text()
    lines = re.findall(r"pip install (.*)", text.replace("\\\n", " "))
    kinds = [
        r".*--require-hashes -r requirements\.lock",
        r".*\$\(TORCH\)",
        r".*--no-deps --no-build-isolation --editable \.",
        r".*--no-deps -r tests/peers/requirements\.txt",
    ]
    assert len(lines) == len(kinds) and all(any(re.fullmatch(kind, line) for line in lines) for kind in kinds), lines
    assert re.search(r"^TORCH := torch==[0-9.]+$", text, re.M)
    peers = (ROOT / "tests/peers/requirements.txt").read_text().splitlines()
    assert all(re.fullmatch(r"[\w.-]+==[\w.]+", line) for line in peers if not line.startswith("#"))
