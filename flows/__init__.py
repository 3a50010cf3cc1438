"""Prefect flows.

Prefect reads its settings from the environment when it is first imported, so they are given here, before any flow
imports it. A setting that the user has made stands.
"""

import os

for _name, _value in {
    # A temporary server may need long to start on a busy machine.
    "PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS": "120",
    # Its shutdown prints harmless tracebacks.
    "PREFECT_LOGGING_SERVER_LEVEL": "CRITICAL",
    # Nothing is sent anywhere.
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    "DO_NOT_TRACK": "1",
}.items():
    os.environ.setdefault(_name, _value)
