"""Alerts: a message to a webhook for each run that fails, and for each that succeeds with failed checks.

The message is the JSON of a Slack incoming webhook, which Mattermost, Rocket.Chat, Discord (``…/slack``) and others
take as well. A run has one alert however many of its steps and checks fail, and a failed check one until it passes
again or fails for another reason. What cannot be delivered is logged and let
go: an alert never fails a tick, holds up the next one, or repeats what may have arrived.
"""

import json
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from http import HTTPStatus
from http.client import HTTPException
from typing import Any
from urllib.error import HTTPError, URLError
from urllib.request import HTTPRedirectHandler, Request, build_opener

import dagster as dg

from user_pipeline import settings
from user_pipeline.dagster_internals import (
    DagsterAssetCheckFailedError,
    DagsterExecutionStepExecutionError,
)
from user_pipeline.defs.automation.faults import news
from user_pipeline.defs.common import partition_range
from user_pipeline.masking import mask
from user_pipeline.setting_values import Webhook
from user_pipeline.settings import Settings

_TIMEOUT = 4.0
_PATIENCE = 8.0
"""Seconds for one alert, tries and pauses together: Dagster handles five runs a tick and stops a tick after 60."""
_PAUSES = (0.5, 1.5)
"""Seconds before the second and the third try."""
_SHOWN = 5
"""How many failed steps, and how many failed checks, an alert names."""
_LONGEST_REASON = 600

_DEFAULT_STATUS = dg.DefaultSensorStatus.RUNNING if settings.current().alert_webhook else dg.DefaultSensorStatus.STOPPED


@dg.run_failure_sensor(
    default_status=_DEFAULT_STATUS,
    description="Posts every run that fails, with what failed and why, to USER_PIPELINE_ALERT_WEBHOOK_URL. "
    "Off while that is unset.",
)
def failed_runs(context: dg.RunFailureSensorContext) -> None:
    """One alert for a failed run, unless all that failed are checks which were told of before."""
    found = news(context.instance, context.dagster_run.run_id)
    failures = list(_failures(context))
    if failures or found:
        title = f":red_circle: *{context.dagster_run.job_name}* failed"
        _alert(context, title, [*failures, *_lines(found.failed), *_mended(found.mended)])
    else:
        context.log.info("run %s: no alert, its failed checks were told of before", context.dagster_run.run_id)


@dg.run_status_sensor(
    run_status=dg.DagsterRunStatus.SUCCESS,
    default_status=_DEFAULT_STATUS,
    description="Posts every run that succeeds although checks fail, warnings included, or in which checks pass that "
    "failed before, to USER_PIPELINE_ALERT_WEBHOOK_URL. What was told is not told again. Off while that is unset.",
)
def failed_checks(context: dg.RunStatusSensorContext) -> None:
    """One alert for a run that succeeded, if its checks say what those of earlier runs did not."""
    job = context.dagster_run.job_name
    found = news(context.instance, context.dagster_run.run_id)
    if found.failed:
        title = f":warning: *{job}* succeeded, but checks failed"
        _alert(context, title, [*_lines(found.failed), *_mended(found.mended)])
    elif found.mended:
        _alert(context, f":white_check_mark: *{job}*: checks pass again", _mended(found.mended))


def _alert(context: dg.RunStatusSensorContext, title: str, lines: Iterable[str]) -> None:
    current = settings.current()
    webhook = current.alert_webhook
    run_id = context.dagster_run.run_id
    if webhook is None:
        context.log.info("run %s: no alert, USER_PIPELINE_ALERT_WEBHOOK_URL is not set", run_id)
        return
    problem = post(webhook, message(current, context.dagster_run, title, lines))
    if problem:
        context.log.error("run %s: its alert was not delivered to %s: %s", run_id, webhook, problem)
    else:
        context.log.info("run %s: alert delivered to %s", run_id, webhook)


def message(current: Settings, run: dg.DagsterRun, title: str, lines: Iterable[str]) -> dict[str, Any]:
    """The JSON body of an alert, in which no e-mail address and no secret appears."""
    first, last = partition_range(run.tags)
    days = first if first == last else f"{first}...{last}"
    text = [_escape(mask(line, current)) for line in (title, f"*Partition:* {days or 'none'}", *lines)]
    link = f"<{current.ui_url}/runs/{run.run_id}|Open the run>" if current.ui_url else f"Run {run.run_id}"
    return {"text": "\n".join([*text, link])}


def _escape(text: str) -> str:
    """As Slack wants the three characters it reads as markup: https://api.slack.com/reference/surfaces/formatting."""
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def _failures(context: dg.RunFailureSensorContext) -> Iterator[str]:
    """What failed and why: each failed step, or, if none did, the run itself."""
    # A failed blocking check fails its step as well; the check is told of by itself.
    failures = context.get_step_failure_events()
    events = [event for event in failures if not _is_check(event.step_failure_data.error)]
    assets = _assets_by_op(context.repository_def)
    for event in events[:_SHOWN]:
        data = event.step_failure_data
        described = data.user_failure_data and data.user_failure_data.description
        name = event.node_name
        yield f"*Asset:* {', '.join(assets.get(name, [name]))}"
        yield f"*Error:* {_verbatim(described or _cause(data.error))}"
    if len(events) > _SHOWN:
        yield f"and {len(events) - _SHOWN} more steps"
    if not failures:
        selection = context.dagster_run.asset_selection
        if selection:
            names = sorted(key.to_user_string() for key in selection)
            yield f"*Assets:* {_shortened(', '.join(names))}"
        yield f"*Error:* {_verbatim(context.failure_event.message or 'the run ended without saying why')}"


def _assets_by_op(repository: dg.RepositoryDefinition | None) -> dict[str, list[str]]:
    """The assets that an op makes or checks, by the op's name."""
    found: dict[str, set[str]] = {}
    if repository is not None:
        for key, assets in repository.assets_defs_by_key.items():
            found.setdefault(assets.op.name if assets.is_executable else "", set()).add(key.to_user_string())
        for check, checks in repository.asset_checks_defs_by_key.items():
            found.setdefault(checks.node_def.name, set()).add(check.asset_key.to_user_string())
    return {op: sorted(names) for op, names in found.items()}


def _is_check(error: Any) -> bool:  # noqa: ANN401 - SerializableErrorInfo, which Dagster does not export
    return error is not None and error.cls_name == DagsterAssetCheckFailedError.__name__


def _cause(error: Any) -> str:  # noqa: ANN401 - as above
    """What was raised in the step, without Dagster's own words around it and without traceback."""
    if error is not None and error.cause is not None and error.cls_name == DagsterExecutionStepExecutionError.__name__:
        error = error.cause
    return str(error.message) if error is not None else "no reason given"


def _shortened(text: str) -> str:
    text = "\n".join(line.rstrip() for line in text.strip().splitlines() if line.strip())
    return text if len(text) <= _LONGEST_REASON else text[: _LONGEST_REASON - 1] + "…"


def _verbatim(text: str) -> str:
    """Text as a block of code, which no reader of Markdown takes for markup: it may quote what was delivered."""
    return "```" + _shortened(text).replace("`", "'") + "```"


def _lines(failed: Sequence[dg.AssetCheckEvaluation]) -> Iterator[str]:
    """Each check once, with the days it failed for; a run of several days evaluates it for each and for all."""
    checks = _by_check(failed)
    for (asset, name), evaluations in list(checks.items())[:_SHOWN]:
        warning = all(evaluation.severity == dg.AssetCheckSeverity.WARN for evaluation in evaluations)
        yield f"*Asset:* {asset}"
        yield f"*Check:* {name} {'warns' if warning else 'failed'}{_days(evaluations)}"
        if description := next((e.description for e in evaluations if e.description), None):
            yield _verbatim(description)
    if len(checks) > _SHOWN:
        yield f"and {len(checks) - _SHOWN} more checks"


def _mended(passed: Sequence[dg.AssetCheckEvaluation]) -> Iterator[str]:
    """Each check that passes again, with its days."""
    checks = _by_check(passed)
    for (asset, name), evaluations in list(checks.items())[:_SHOWN]:
        yield f"*Mended:* {name} of {asset}{_days(evaluations)}"
    if len(checks) > _SHOWN:
        yield f"and {len(checks) - _SHOWN} more checks that pass again"


def _by_check(
    evaluations: Sequence[dg.AssetCheckEvaluation],
) -> dict[tuple[str, str], list[dg.AssetCheckEvaluation]]:
    checks: dict[tuple[str, str], list[dg.AssetCheckEvaluation]] = {}
    for evaluation in evaluations:
        checks.setdefault((evaluation.asset_key.to_user_string(), evaluation.check_name), []).append(evaluation)
    return checks


def _days(evaluations: Sequence[dg.AssetCheckEvaluation]) -> str:
    days = sorted({evaluation.partition for evaluation in evaluations if evaluation.partition})
    return f" for {_enumerated(days)}" if days else ""


def _enumerated(days: list[str]) -> str:
    more = len(days) - _SHOWN
    return ", ".join(days[:_SHOWN]) + (f" and {more} more days" if more > 0 else "")


def post(webhook: Webhook, body: dict[str, Any]) -> str | None:
    """Post a message; returns why it was not taken, or None. Takes no longer than ``_PATIENCE``, and never raises.

    It is sent again only while it cannot have been taken: the connection failed, or the answer is 429 or 5xx.
    """
    return _send(webhook, json.dumps(body).encode())


def fetch(url: Webhook) -> str | None:
    """Ask for a url and let go of the answer; otherwise like :func:`post`."""
    return _send(url, None)


def _send(webhook: Webhook, content: bytes | None) -> str | None:
    """Post some JSON, or ask for the url if there is none."""
    outcome: list[str | None] = []
    deadline = time.monotonic() + _PATIENCE
    # In a thread that can be left alone: a timeout is for each read, and a server may drip for hours.
    thread = threading.Thread(target=lambda: outcome.append(_try_to_send(webhook, content, deadline)), daemon=True)
    thread.start()
    thread.join(_PATIENCE)
    return outcome[0] if outcome else f"no whole answer within {_PATIENCE:g} seconds; it may have arrived"


def _try_to_send(webhook: Webhook, content: bytes | None, deadline: float) -> str | None:
    problem: str | None = None
    for pause in (0.0, *_PAUSES):
        if time.monotonic() + pause >= deadline:
            break
        time.sleep(pause)
        headers = {} if content is None else {"Content-Type": "application/json"}
        request = Request(webhook.url.get_secret_value(), content, headers)  # noqa: S310 - http(s) only
        try:
            # Checked to be http when it was read.
            with build_opener(_NoRedirects).open(request, timeout=_TIMEOUT):
                return None
        except HTTPError as error:
            problem = f"it answers {error.code}"
            error.close()
            if error.code < HTTPStatus.INTERNAL_SERVER_ERROR and error.code != HTTPStatus.TOO_MANY_REQUESTS:
                return problem
        except URLError as error:
            problem = f"it cannot be reached ({type(error.reason).__name__})"
        except (OSError, HTTPException) as error:
            # It was sent: whoever is only slow would post it twice.
            return f"no answer to it ({type(error).__name__}); it may have arrived"
        except Exception as error:  # noqa: BLE001 - whatever it is, it may name the url
            return f"it cannot be sent ({type(error).__name__})"
    return problem


class _NoRedirects(HTTPRedirectHandler):
    """The message goes where the setting says, and nowhere else."""

    def redirect_request(self, *_: object) -> None:
        return None
