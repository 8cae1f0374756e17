"""A whole Airflow: scheduler with LocalExecutor, DAG processor and API server, on PostgreSQL, with our DAGs; and its API."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from types import MappingProxyType
from typing import Any

from sandbox.airflow import airflow_environment, migrate
from sandbox.leash import free_ports
from tests.system.postgresql import running_postgresql

COMPONENTS = ("api-server", "scheduler", "dag-processor")
START_SECONDS = 150.0
STOP_SECONDS = 12.0


@dataclass
class RunningAirflow:
    """An Airflow that runs, and what a test asks of it by its API."""

    url: str
    environment: Mapping[str, str]
    logs: Path
    _token: str = field(default="", repr=False)

    # Waiting.

    def wait(self, what: str, ready: Callable[[], Any], seconds: float = 90) -> Any:
        """What `ready` returns once it is true. Fails with the last lines of every log."""
        deadline = time.monotonic() + seconds
        while not (found := ready()):
            if time.monotonic() > deadline:
                raise TimeoutError(f"{what}: not within {seconds:.0f} s\n{self.tail()}")
            time.sleep(0.5)
        return found

    def tail(self, lines: int = 25) -> str:
        found = []
        for file in sorted(self.logs.glob("*.log")):
            found += [f"--- {file.name}", *file.read_text(errors="replace").splitlines()[-lines:]]
        return "\n".join(found)

    # The API.

    def ask(self, method: str, path: str, body: Any = None) -> Any:
        """The answer of the REST API. Raises urllib's HTTPError, with the answer's body as a note."""
        if not self._token:
            self._token = self._json("GET", f"{self.url}/auth/token", None, {})["access_token"]
        headers = {"Authorization": f"Bearer {self._token}", "Content-Type": "application/json"}
        return self._json(method, f"{self.url}/api/v2/{path}", body, headers)

    def _json(self, method: str, url: str, body: Any, headers: Mapping[str, str]) -> Any:
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(url, data=data, method=method, headers=dict(headers))
        try:
            with urllib.request.urlopen(request, timeout=20) as answer:
                return json.loads(answer.read() or b"null")
        except urllib.error.HTTPError as error:
            error.add_note(error.read().decode(errors="replace"))
            raise

    def is_healthy(self) -> bool:
        """Whether all components are there and all DAGs are known."""
        try:
            health = self._json("GET", f"{self.url}/api/v2/monitor/health", None, {})
            return (
                all(health[name]["status"] == "healthy" for name in ("metadatabase", "scheduler", "dag_processor"))
                and self.ask("GET", "dags")["total_entries"] >= 3
            )
        except OSError:
            return False

    # DAGs and their runs.

    def unpause(self, dag_id: str) -> None:
        self.ask("PATCH", f"dags/{dag_id}", {"is_paused": False})

    def next_ticks(self) -> dict[str, datetime]:
        """When the next scheduled run of each DAG is due, perhaps already; without those that are paused or have no ticks."""
        return {
            found["dag_id"]: datetime.fromisoformat(found["next_dagrun_run_after"])
            for found in self.ask("GET", "dags")["dags"]
            if not found["is_paused"] and found["next_dagrun_run_after"]
        }

    def runs(self, dag_id: str) -> list[dict[str, Any]]:
        return self.ask("GET", f"dags/{dag_id}/dagRuns?order_by=run_after&limit=100")["dag_runs"]

    def trigger(self, dag_id: str, **conf: Any) -> str:
        """Start a run by hand, now. Returns its id."""
        return self.ask("POST", f"dags/{dag_id}/dagRuns", {"logical_date": None, "conf": conf})["dag_run_id"]

    def finished(self, dag_id: str, run_id: str, seconds: float = 120) -> str:
        """The state in which a run ends."""

        def ended() -> str | None:
            state = self.ask("GET", f"dags/{dag_id}/dagRuns/{run_id}")["state"]
            return state if state in {"success", "failed"} else None

        return self.wait(f"the end of {dag_id} {run_id}", ended, seconds)

    def tasks(self, dag_id: str, run_id: str) -> dict[str, dict[str, Any]]:
        """The task instances of a run; mapped ones as `compact[<what the UI shows>]`."""
        found = self.ask("GET", f"dags/{dag_id}/dagRuns/{run_id}/taskInstances?limit=100")["task_instances"]
        return {
            one["task_id"] if one["map_index"] < 0 else f"{one['task_id']}[{one['rendered_map_index']}]": one
            for one in found
        }

    def announced(self, dag_id: str, run_id: str) -> list[str]:
        """The partitions of the asset events that a run made."""
        wanted = urllib.parse.urlencode({"source_dag_id": dag_id, "source_run_id": run_id, "limit": 100})
        events = self.ask("GET", f"assets/events?{wanted}")
        return sorted(event["partition_key"] for event in events["asset_events"])

    def log_of(self, dag_id: str, run_id: str, task: Mapping[str, Any]) -> str:
        """What a task instance has logged, a line an entry."""
        path = f"dags/{dag_id}/dagRuns/{run_id}/taskInstances/{task['task_id']}/logs/{task['try_number']}"
        answer = self.ask("GET", f"{path}?map_index={task['map_index']}&full_content=true")
        return "\n".join(json.dumps(entry, ensure_ascii=False) for entry in answer["content"])

    def command(self, *arguments: str) -> str:
        """Run `airflow ...` beside it, as an operator would."""
        done = subprocess.run(
            [sys.executable, "-m", "airflow", *arguments],
            env=dict(self.environment), capture_output=True, text=True, check=False, timeout=60,
        )  # fmt: skip
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout


@contextlib.contextmanager
def running_airflow(
    home: Path, config: Path, credentials: Mapping[str, str], changes: Mapping[str, str] = MappingProxyType({})
) -> Iterator[RunningAirflow]:
    """Run it while the block lasts; then every process that it started is ended. `changes` go into its environment."""
    api, worker_logs = free_ports(2)
    with running_postgresql("airflow") as database:
        environment = airflow_environment(home, config) | dict(credentials) | {
            "AIRFLOW__DATABASE__SQL_ALCHEMY_CONN": f"postgresql+psycopg2://{database}",
            "AIRFLOW__CORE__EXECUTOR": "LocalExecutor",
            "AIRFLOW__CORE__PARALLELISM": "4",
            "AIRFLOW__CORE__SIMPLE_AUTH_MANAGER_ALL_ADMINS": "True",  # on the loopback, for as long as a test
            "AIRFLOW__CORE__EXECUTION_API_SERVER_URL": f"http://127.0.0.1:{api}/execution/",
            "AIRFLOW__API__PORT": str(api),
            "AIRFLOW__API__BASE_URL": f"http://127.0.0.1:{api}",
            "AIRFLOW__API__WORKERS": "1",
            "AIRFLOW__API_AUTH__JWT_SECRET": "of-this-test-alone-and-of-a-length-that-is-enough-for-it-as-a-key-0123456789",
            "AIRFLOW__LOGGING__WORKER_LOG_SERVER_PORT": str(worker_logs),
            "AIRFLOW__SCHEDULER__ENABLE_HEALTH_CHECK": "False",
            "AIRFLOW__DAG_PROCESSOR__REFRESH_INTERVAL": "5",
        } | dict(changes)  # fmt: skip
        migrate(environment)
        logs = home / "components"
        logs.mkdir()
        running = RunningAirflow(f"http://127.0.0.1:{api}", environment, logs)
        with contextlib.ExitStack() as stack:
            for name in COMPONENTS:
                stack.enter_context(_component(name, environment, logs / f"{name}.log"))
            running.wait("a healthy Airflow", running.is_healthy, START_SECONDS)
            yield running


@contextlib.contextmanager
def _component(name: str, environment: Mapping[str, str], log: Path) -> Iterator[None]:
    """One server in a process group of its own, which is ended as a whole: it has children, and they have."""
    with log.open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "airflow", name],
            env=dict(environment), stdin=subprocess.DEVNULL, stdout=output, stderr=output, start_new_session=True,
        )  # fmt: skip
        try:
            yield
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGTERM)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(STOP_SECONDS)
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
