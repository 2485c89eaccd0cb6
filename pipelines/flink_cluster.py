"""A stand-alone Flink cluster on this machine: `python -m pipelines.flink_cluster start|stop|status`.

One JobManager, two TaskManagers and Beam's Python worker pool, all listening on the loopback interface
only. What is missing is installed into the cluster's folder first: Flink from PyPI, apart from this
environment, and the jar of Beam's Flink runner by Maven. ``cluster.json`` there names the processes.
"""

import contextlib
import json
import os
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import apache_beam
import click

from featurestore.errors import RunnerError
from pipelines.flink import FLINK_VERSION, JOB_SERVER_JAR, POOL_PORT, ask
from pipelines.runner import available_cores

FLINK_RELEASE = f"{FLINK_VERSION}.3"
TASK_MANAGERS = 2
START_SECONDS = 120
STOP_SECONDS = 10
SETTINGS = {
    # A job is tried again for longer than it takes to notice that a TaskManager is lost: until then that one
    # is given tasks. Beam hands no restart strategy of a batch job to Flink, so the cluster has it.
    "restart-strategy.type": "fixed-delay",
    "restart-strategy.fixed-delay.attempts": "5",
    "restart-strategy.fixed-delay.delay": "5s",
    "heartbeat.interval": "2000",
    "heartbeat.timeout": "10000",
    "slot.request.timeout": "120000",
    "cluster.evenly-spread-out-slots": "true",
    "jobmanager.memory.process.size": "1600m",
    "taskmanager.memory.process.size": "1728m",
    # Each job brings the runner's classes anew, and the last job's leave late.
    "jobmanager.memory.jvm-metaspace.size": "512m",
    "taskmanager.memory.jvm-metaspace.size": "512m",
}


@dataclass(frozen=True)
class Process:
    """A process that we started: its id, and when it started, for ids are used again."""

    name: str
    pid: int
    started: str

    @classmethod
    def of(cls, name: str, pid: int) -> "Process":
        """Remember a running process."""
        return cls(name, pid, _started(pid))

    @property
    def alive(self) -> bool:
        """Whether it still runs."""
        return self.started != "" and _started(self.pid) == self.started

    def signal(self, number: signal.Signals) -> None:
        """Send a signal to it and to all its children, which may outlive it: it leads their process group."""
        if not self.alive and Path(f"/proc/{self.pid}").exists():
            return  # another process has its id now
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, number)


def _started(pid: int) -> str:
    """Return when a process started, as the kernel says it; empty where there is none but a zombie."""
    try:
        state, *fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rsplit(") ", 1)[1].split()
    except (OSError, IndexError):
        return ""
    return "" if state in "ZX" else fields[18]


@dataclass(frozen=True)
class Cluster:
    """A cluster's folder, slots of each TaskManager, and first port: REST, JobManager, worker pool."""

    folder: Path
    port: int
    slots: int

    @property
    def pool(self) -> int:
        """Port of the worker pool."""
        return self.port + 2

    @property
    def master(self) -> str:
        """HOST:PORT, as --flink_master takes it."""
        return f"localhost:{self.port}"

    @property
    def flags(self) -> str:
        """The flags of `slotstore ingest` that name this cluster, as they are typed."""
        flags = ["--runner FlinkRunner", f"--flink_master {self.master}"]
        if self.folder != Path(JOB_SERVER_JAR).parent.resolve():
            jar = self.folder / Path(JOB_SERVER_JAR).name
            flags.append(f"--flink_job_server_jar {shlex.quote(str(jar))}")
        if self.pool != POOL_PORT:
            flags.append(f"--environment_type EXTERNAL --environment_config localhost:{self.pool}")
        return " ".join(flags)

    def save(self, processes: Sequence[Process]) -> None:
        """Write the cluster and its processes to ``cluster.json``."""
        state = {"port": self.port, "slots": self.slots}
        text = json.dumps(state | {"processes": [asdict(process) for process in processes]}, indent=1)
        (self.folder / "cluster.json").write_text(text + "\n", encoding="utf-8")


def load(folder: Path) -> tuple[Cluster, list[Process]] | None:
    """Return the cluster started last in a folder, and its processes, of which some may have ended."""
    try:
        state = json.loads((folder / "cluster.json").read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    processes = [Process(**process) for process in state.pop("processes")]
    return Cluster(folder, **state), processes


def whole(processes: Sequence[Process]) -> bool:
    """Whether all processes of a cluster run."""
    return len(processes) == TASK_MANAGERS + 2 and all(process.alive for process in processes)


def install(folder: Path) -> None:
    """Put Flink and the runner's jar into the folder, where they are not there yet."""
    for program in ("java", "mvn"):
        if not shutil.which(program):
            raise RunnerError(f"no {program} on the PATH: install a JDK (17 is tried) and Maven")
    folder.mkdir(parents=True, exist_ok=True)
    _make(folder / "flink", _install_flink)
    _make(folder / Path(JOB_SERVER_JAR).name, _install_jar)


def _make(path: Path, make: Callable[[Path], Path]) -> None:
    """Make a file or folder under a temporary name, so that one that is there is whole."""
    if path.exists():
        return
    scratch = path.with_name(f".{path.name}.part")
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir()
    make(scratch).rename(path)
    shutil.rmtree(scratch, ignore_errors=True)


def _install_flink(folder: Path) -> Path:
    """Install Flink's jars and scripts; a wheel for any Python will do, since no Python of it is run."""
    click.echo(f"installing Flink {FLINK_RELEASE} from PyPI", err=True)
    pip = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--target", str(folder)]
    wheel = ["--python-version", "3.11", "--only-binary", "apache-flink"]
    _run([*pip, *wheel, f"apache-flink-libraries=={FLINK_RELEASE}", f"apache-flink=={FLINK_RELEASE}"])
    return folder


def _install_jar(folder: Path) -> Path:
    """Fetch the published job server of this Beam; where Maven has none, assemble one."""
    version = apache_beam.__version__
    artifact = f"org.apache.beam:beam-runners-flink-{FLINK_VERSION}-job-server:{version}"
    click.echo(f"fetching {artifact} by Maven", err=True)
    maven = ["mvn", "-B", "-q", f"-DoutputDirectory={folder}"]
    try:
        _run([*maven, "dependency:get", "dependency:copy", f"-Dartifact={artifact}", "-Dtransitive=false"])
    except RunnerError:
        click.echo("Maven has none: assembling it from the runner's library", err=True)
        pom = Path(__file__).with_name("flink_job_server.xml")
        _run([*maven, "-f", str(pom), f"-Dfolder={folder}", "package"])
        return folder / "flink-job-server-1.jar"
    return next(folder.glob("*.jar"))


def _run(command: Sequence[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603 - ours
    if done.returncode:
        raise RunnerError(f"`{' '.join(command)}` failed:\n{(done.stdout + done.stderr).strip()[-2000:]}")


def start(cluster: Cluster) -> None:
    """Start every process and wait until the TaskManagers are registered."""
    for port in range(cluster.port, cluster.port + 3):
        _check_free(port)
    for name in ("log", "tmp"):
        shutil.rmtree(cluster.folder / name, ignore_errors=True)
        (cluster.folder / name).mkdir()
    processes: list[Process] = []
    try:
        for name, command in _commands(cluster).items():
            processes.append(_spawn(cluster.folder, name, command))
            cluster.save(processes)
        _wait_ready(cluster, processes)
    except BaseException:
        end(processes)
        raise


def _check_free(port: int) -> None:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("localhost", port))
        except OSError as error:
            raise RunnerError(f"port {port}: {error.strerror}. Choose another --port") from error


def _commands(cluster: Cluster) -> dict[str, list[str]]:
    tmp = cluster.folder / "tmp"
    settings = SETTINGS | {
        "rest.port": str(cluster.port),
        "jobmanager.rpc.port": str(cluster.port + 1),
        "taskmanager.numberOfTaskSlots": str(cluster.slots),
        "io.tmp.dirs": str(tmp),
        "web.tmpdir": str(tmp),
        "blob.storage.directory": str(tmp),
    }
    given = [text for key, value in settings.items() for text in ("-D", f"{key}={value}")]
    scripts = cluster.folder / "flink" / "pyflink" / "bin"
    commands = {"jobmanager": ["bash", str(scripts / "jobmanager.sh"), "start-foreground", *given]}
    for number in range(1, TASK_MANAGERS + 1):
        own = ["-D", f"taskmanager.resource-id=taskmanager-{number}"]
        script = str(scripts / "taskmanager.sh")
        commands[f"taskmanager-{number}"] = ["bash", script, "start-foreground", *given, *own]
    pool = "apache_beam.runners.worker.worker_pool_main"
    commands["pool"] = [sys.executable, "-m", pool, "--service_port", str(cluster.pool)]
    return commands


def _spawn(folder: Path, name: str, command: Sequence[str]) -> Process:
    with (folder / "log" / f"{name}.out").open("ab") as log:
        process = subprocess.Popen(  # noqa: S603 - ours
            command,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            env=os.environ | _environment(folder),
            start_new_session=True,
        )
    return Process.of(name, process.pid)


def _environment(folder: Path) -> Mapping[str, str]:
    """Return what the processes find in their environment: the pool starts its workers as `python`."""
    home = folder / "flink" / "pyflink"
    return {
        "FLINK_HOME": str(home),
        "FLINK_CONF_DIR": str(home / "conf"),
        "FLINK_LOG_DIR": str(folder / "log"),
        "FLINK_PID_DIR": str(folder / "tmp"),
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}",
    }


def _wait_ready(cluster: Cluster, processes: Sequence[Process]) -> None:
    until = time.monotonic() + START_SECONDS
    while not _ready(cluster):
        for process in processes:
            if not process.alive:
                raise RunnerError(f"{process.name} ended: see {cluster.folder / 'log' / process.name}.out")
        if time.monotonic() > until:
            raise RunnerError(f"no cluster after {START_SECONDS} s: see {cluster.folder / 'log'}")
        time.sleep(0.2)


def _ready(cluster: Cluster) -> bool:
    with socket.socket() as probe:
        if probe.connect_ex(("localhost", cluster.pool)):
            return False
    try:
        return bool(ask(cluster.master, "overview")["taskmanagers"] == TASK_MANAGERS)
    except OSError:
        return False


def end(processes: Sequence[Process]) -> None:
    """End the processes and their children: asked first, then killed."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        for process in processes:
            process.signal(number)
        until = time.monotonic() + STOP_SECONDS
        while any(process.alive for process in processes) and time.monotonic() < until:
            time.sleep(0.1)


def _folder(_: click.Context, __: click.Parameter, value: Path) -> Path:
    return value.resolve()


folder_option = click.option(
    "--folder",
    type=click.Path(path_type=Path, file_okay=False),
    default=".flink",
    show_default=True,
    callback=_folder,
    help="Where the cluster's programs, logs and scratch files are.",
)


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
def command() -> None:
    """A stand-alone Flink cluster on this machine, for `slotstore ingest --runner FlinkRunner`."""


@command.command("start")
@folder_option
@click.option("--port", type=int, help="Of the REST interface; the next two are taken too. Default: 8081.")
@click.option("--slots", type=int, help="Of each TaskManager. Default: one a core.")
def start_command(folder: Path, port: int | None, slots: int | None) -> None:
    """Install what is missing, start the cluster, print the flags to ingest with.

    Where it runs already, only the flags are printed; where a part of it runs, all starts anew as it was.
    """
    default = Cluster(folder, 8081, available_cores())
    cluster, processes = load(folder) or (default, [])
    if not whole(processes):
        before = cluster if any(process.alive for process in processes) else default
        end(processes)
        cluster = Cluster(folder, port or before.port, slots or before.slots)
        install(folder)
        start(cluster)
    click.echo(cluster.flags)


@command.command("stop")
@folder_option
def stop_command(folder: Path) -> None:
    """End every process of the cluster."""
    _, processes = load(folder) or (None, [])
    running = sum(process.alive for process in processes)
    end(processes)
    click.echo(f"stopped {running} processes")


@command.command("status")
@folder_option
def status_command(folder: Path) -> int:
    """Show which processes run and the flags to ingest with; exit status 1 unless all do."""
    cluster, processes = load(folder) or (None, [])
    for process in processes:
        click.echo(f"{process.name:<14} {process.pid if process.alive else 'ended'}")
    if cluster is None or not whole(processes):
        click.echo("the cluster does not run, or not all of it: `start` starts it anew")
        return 1
    click.echo(cluster.flags)
    return 0


if __name__ == "__main__":
    from featurestore.cli import run_command

    run_command(command)
