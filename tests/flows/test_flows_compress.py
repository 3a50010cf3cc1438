import os
import re

from autocompress.flows.compress import artifact_key, compress
from hypothesis import given
from hypothesis import strategies as st

from autocompress.config import Study

NAMES = st.from_regex(r"[A-Za-z0-9][A-Za-z0-9_-]{0,30}", fullmatch=True)


@given(NAMES)
def test_artifact_keys_are_what_prefect_accepts(name):
    assert re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*", artifact_key(name, "front"))


def test_a_password_in_the_storage_reaches_no_parameter():
    study = Study.from_packaged("digits", ["search.storage=postgresql://me:secret-word@host/db"])
    assert "secret-word" not in str(compress.serialize_parameters({"study": study}))


def test_the_flow_can_be_scheduled_with_a_study_file():
    deployment = compress.to_deployment(name="nightly", cron="0 2 * * *", parameters={"study": "study.yaml"})
    assert deployment.parameters == {"study": "study.yaml"}
    assert [s.schedule.cron for s in deployment.schedules] == ["0 2 * * *"]


def test_prefect_s_settings_are_made_before_it_is_imported():
    assert {"PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS", "PREFECT_LOGGING_SERVER_LEVEL"} <= set(os.environ)
