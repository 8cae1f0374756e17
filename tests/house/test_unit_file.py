"""The systemd unit keeps what it promises, and agrees with the program it runs. Read as text; no systemd is needed."""

import re
from collections import defaultdict
from pathlib import Path

import pytest

from ingester.__main__ import main
from ingester.commands.install import PROGRAM
from ingester.service import LOOK_EVERY_SECONDS, START_SECONDS
from schemas.secrets import load_x_secret
from schemas.settings import CONFIG_ENV, DEFAULT_CONFIG, ENV_PREFIX, EXIT_CONFIG, Service, Settings, Spool
from tests.house.checkout import ROOT, pyproject, text

UNIT = Path("systemd/tweetlake.service")
ENVIRONMENT_EXAMPLE = Path("systemd/tweetlake.env.example")

# Settings of [Service] that systemd 252, Debian 12's, does not know and would leave out with a warning.
YOUNGER_THAN_252 = {
    "RestartSteps", "RestartMaxDelaySec", "RestartMode", "OpenFile", "ImportCredential", "MemoryZSwapMax", "PrivatePIDs",
    "SetLoginEnvironment", "SurviveFinalKillSignal", "FileDescriptorStorePreserve", "CoredumpReceive", "DelegateSubgroup",
}  # fmt: skip

CLOSED = {
    "CapabilityBoundingSet": [""],
    "AmbientCapabilities": [""],
    "DynamicUser": ["yes"],
    "KeyringMode": ["private"],
    "LimitCORE": ["0"],
    "LockPersonality": ["yes"],
    "MemoryDenyWriteExecute": ["yes"],
    "NoNewPrivileges": ["yes"],
    "PrivateDevices": ["yes"],
    "PrivateIPC": ["yes"],
    "PrivateMounts": ["yes"],
    "PrivateTmp": ["yes"],
    "PrivateUsers": ["yes"],
    "ProcSubset": ["pid"],
    "ProtectClock": ["yes"],
    "ProtectControlGroups": ["yes"],
    "ProtectHome": ["yes"],
    "ProtectHostname": ["yes"],
    "ProtectKernelLogs": ["yes"],
    "ProtectKernelModules": ["yes"],
    "ProtectKernelTunables": ["yes"],
    "ProtectProc": ["invisible"],
    "ProtectSystem": ["strict"],
    "RemoveIPC": ["yes"],
    "RestrictNamespaces": ["yes"],
    "RestrictRealtime": ["yes"],
    "RestrictSUIDSGID": ["yes"],
    "StateDirectoryMode": ["0700"],
    "SystemCallArchitectures": ["native"],
    "SystemCallErrorNumber": ["EPERM"],
    "SystemCallFilter": ["@system-service", "~@privileged @resources"],
    "UMask": ["0077"],
}


def parsed(content):
    """Section → key → its values in their order, as systemd.syntax(7) reads a file; every line must be one it knows."""
    sections = {}
    section = None
    for line in content.splitlines():
        if not line.strip() or line.lstrip().startswith(("#", ";")):
            continue
        if heading := re.fullmatch(r"\[(\w+)\]", line):
            section = sections.setdefault(heading[1], defaultdict(list))
            continue
        assignment = re.fullmatch(r"([A-Za-z]+)=(.*)", line)
        assert assignment, f"neither comment, section nor assignment: {line!r}"
        assert section is not None, f"before any section: {line!r}"
        assert not line.endswith("\\"), "a continued line, which this parser does not join"
        section[assignment[1]].append(assignment[2])
    return {name: dict(settings) for name, settings in sections.items()}


@pytest.fixture(scope="module")
def unit():
    return parsed(text(UNIT))


@pytest.fixture(scope="module")
def service(unit):
    return unit["Service"]


def one(section, key):
    assert key in section, f"{key}= is missing"
    [value] = section[key]
    return value


def seconds(value):
    assert value.isdigit(), f"plain seconds are expected here, not {value!r}"
    return int(value)


def test_it_has_the_three_sections_of_a_service(unit):
    assert sorted(unit) == ["Install", "Service", "Unit"]
    assert one(unit["Install"], "WantedBy") == "multi-user.target"
    assert "Tweetlake" in one(unit["Unit"], "Description")


def test_it_starts_a_command_that_the_distribution_installs(service):
    program, command = one(service, "ExecStart").split()
    assert program == PROGRAM
    assert text(UNIT).count(f"={PROGRAM} ") == 1, "what install-service replaces"
    assert "tweetlake" in pyproject()["project"]["scripts"]
    assert command in main.commands


def test_its_settings_file_is_the_one_the_program_looks_for(service):
    assert f"{CONFIG_ENV}={DEFAULT_CONFIG}" in service["Environment"]


def test_the_environment_file_may_be_missing(service):
    assert one(service, "EnvironmentFile") == "-/etc/tweetlake/tweetlake.env"


def test_the_program_finds_the_token_under_the_credentials_name(service, tmp_path):
    name, source = one(service, "LoadCredential").split(":")
    assert source == "/etc/tweetlake/x-bearer-token"
    (tmp_path / name).write_text("AAAA\n")
    found = load_x_secret(None, {"CREDENTIALS_DIRECTORY": str(tmp_path)})
    assert found.bearer_token is not None
    assert found.bearer_token.get_secret_value() == "AAAA"


def test_no_secret_stands_in_the_unit(service):
    assert not [value for value in service["Environment"] if re.search(r"TOKEN|SECRET|KEY", value)]


def test_the_default_spool_lies_in_the_only_folder_it_may_write(service):
    state = Path("/var/lib") / one(service, "StateDirectory")
    assert state in Spool().directory.parents
    assert "ReadWritePaths" not in service


def test_it_is_started_again_after_every_end_but_wrong_settings(unit, service):
    assert one(service, "Restart") == "always"
    assert one(service, "RestartPreventExitStatus").split() == [str(EXIT_CONFIG)]
    assert "SuccessExitStatus" not in service
    assert one(unit["Unit"], "StartLimitIntervalSec") == "0", "it would stay down after a few failed starts"


def test_a_program_that_dies_at_once_is_not_started_in_a_hot_loop(service):
    assert 5 <= seconds(one(service, "RestartSec")) <= 60


def test_it_gets_a_bit_more_than_its_grace_time_to_stop(service):
    assert one(service, "KillSignal") == "SIGTERM"
    grace = Service().grace_seconds
    assert grace + 5 <= seconds(one(service, "TimeoutStopSec")) <= grace + 30
    assert not {"KillMode", "FinalKillSignal", "SendSIGKILL"} & set(service)


def test_it_is_started_once_the_program_says_so_and_only_the_program_may(service):
    assert one(service, "Type") == "notify"
    assert "NotifyAccess" not in service, "main, the default: no child speaks for it"


def test_signs_of_life_come_far_oftener_than_the_watchdog_waits_for_them(service):
    assert LOOK_EVERY_SECONDS * 3 <= seconds(one(service, "WatchdogSec")) <= 120


def test_a_start_asks_for_more_time_before_the_one_it_has_is_over(service):
    assert "TimeoutStartSec" not in service, "systemd's 90 s; the first request for more comes at once"
    assert LOOK_EVERY_SECONDS * 3 <= START_SECONDS


@pytest.mark.parametrize("setting", sorted(CLOSED))
def test_it_is_closed(service, setting):
    assert service[setting] == CLOSED[setting]


def test_it_can_reach_the_network_and_be_asked_on_loopback(service):
    assert {"AF_INET", "AF_INET6", "AF_UNIX"} <= set(one(service, "RestrictAddressFamilies").split())
    assert "AF_PACKET" not in one(service, "RestrictAddressFamilies")
    assert not {"PrivateNetwork", "IPAddressDeny", "IPAddressAllow", "SocketBindDeny", "NetworkNamespacePath"} & set(
        service
    )


def test_it_waits_for_the_network_at_boot(unit):
    assert one(unit["Unit"], "Wants") == "network-online.target"
    assert "network-online.target" in one(unit["Unit"], "After").split()


def test_systemd_of_debian_12_knows_every_setting(service):
    assert not YOUNGER_THAN_252 & set(service)


def test_every_setting_is_given_once_where_once_is_meant(unit):
    lists = {"Environment", "SystemCallFilter"}
    twice = [
        key for section in unit.values() for key, values in section.items() if len(values) > 1 and key not in lists
    ]
    assert not twice


def test_an_installed_package_has_the_unit_with_it():
    wheel = pyproject()["tool"]["hatch"]["build"]["targets"]["wheel"]
    assert wheel["force-include"] == {"systemd": "ingester/systemd"}


# The example of the environment file.


def examples():
    """Every example of the file, as if its comment sign were taken away."""
    return re.findall(r"^#([A-Z][A-Z0-9_]*)=(.*)$", text(ENVIRONMENT_EXAMPLE), re.MULTILINE)


def test_copied_as_it_is_the_example_changes_nothing():
    assert all(not line or line.startswith("#") for line in text(ENVIRONMENT_EXAMPLE).splitlines())


def test_every_setting_in_the_example_works(monkeypatch):
    shown = [(name, value) for name, value in examples() if name.startswith(ENV_PREFIX)]
    assert shown
    for name, value in shown:
        monkeypatch.setenv(name, value)
    settings = Settings(query=[{"name": "python", "rule": "python"}])
    for name, value in shown:
        section, key = name.removeprefix(ENV_PREFIX).lower().split("__")
        assert str(getattr(getattr(settings, section), key)) == value


def test_the_example_holds_no_secret():
    assert {name for name, value in examples() if not name.startswith(ENV_PREFIX) and value} == set()


def test_a_key_and_a_secret_from_the_example_are_taken():
    environment = {name: "x" for name, _ in examples() if name.startswith("X_")}
    found = load_x_secret(None, environment)
    assert found.api_key is not None
    assert found.api_secret is not None


def test_the_unit_and_its_example_name_each_other():
    assert ENVIRONMENT_EXAMPLE.name in text(UNIT)
    assert (
        ROOT / ENVIRONMENT_EXAMPLE
    ).name == f"{Path(one(parsed(text(UNIT))['Service'], 'EnvironmentFile')).name}.example"
