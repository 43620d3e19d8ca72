"""The lab's pages, for people with a browser; they work without JavaScript.

A browser keeps its token in a cookie that scripts cannot read and that other sites' pages do not
send. What a page can change it changes by a form, which carries a proof that this service wrote it.
"""

from __future__ import annotations

import hashlib
import hmac
import re
import secrets
from collections.abc import Callable, Coroutine, Mapping
from functools import lru_cache
from typing import Any
from urllib.parse import parse_qsl, quote, urlencode

from anyio import to_thread
from fastapi import APIRouter, HTTPException, Request, Response
from fastapi.responses import HTMLResponse, RedirectResponse
from fastapi.routing import APIRoute
from markupsafe import Markup

from coralline.errors import CorallineError, DeviceError, UserError
from coralline.report.page import templates
from hardware_lab import trend_page
from hardware_lab.artifacts import MissingError
from hardware_lab.database import STATES, Role, State, iso
from hardware_lab.health import BY_PEOPLE
from hardware_lab.nights import NAME as NIGHTLY
from hardware_lab.service import files, trending, views
from hardware_lab.service.charts import Chart
from hardware_lab.service.gate import ADMINS, ANYONE, COOKIE, Caller, Gate, limited
from hardware_lab.service.results import Result, describe, describe_power, traces_of
from hardware_lab.service.trending import Trends
from hardware_lab.store import Store
from hardware_lab.trends import CONFIDENCE

ASSETS = {"lab.css": "text/css; charset=utf-8", "lab.js": "text/javascript; charset=utf-8"}
RESULTS = 64
"""So many results are kept as they are shown: each some 50 kB."""
MOST_FORM_BYTES = 16 << 10
SIGNED_IN_S = 30 * 24 * 3600
HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; "
    "img-src data:; connect-src 'self'; form-action 'self'; base-uri 'none'; "
    "frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cache-Control": "no-store",
}


class PageRoute(APIRoute):
    """A page, or a form of one: lets in who may see it, and says in a page why not.

    What a form sent is in `request.state.form`.
    """

    roles: frozenset[Role] | None = ANYONE
    """None: everybody."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handler = super().get_route_handler()

        async def guarded(request: Request) -> Response:
            renderer: Pages = request.app.state.pages
            try:
                if request.method == "POST":
                    request.state.form = await _form(request)
                    renderer.check(request)
                if self.roles is not None:
                    request.state.caller = await renderer.admit(request, self.roles)
                answer = await handler(request)
            except HTTPException as error:
                answer = renderer.refusal(request, error)
            except CorallineError as error:
                answer = renderer.problem(request, error)
            for name, value in HEADERS.items():
                answer.headers.setdefault(name, value)
            return answer

        return guarded


class Pages:
    """Writes pages of one lab."""

    def __init__(self, store: Store, gate: Gate) -> None:
        self.store = store
        self._gate = gate
        self._secret = secrets.token_bytes(32)
        self.result = lru_cache(RESULTS)(self._result)
        self.power = lru_cache(RESULTS)(self._power)
        self.trends = Trends(store)
        self._environment = templates("hardware_lab.service", "coralline.report")
        self._environment.filters |= {
            "iso": iso,
            "model": views.model,
            "part": lambda text: quote(text, safe=""),
            "seconds": views.seconds,
        }
        self._environment.globals |= {
            "asset": self._asset,
            "model_of": views.model_of,
            "nights_of": lambda trend: Markup(trend_page.figure(trend)),
            "sentence": trend_page.sentence,
            "span": views.span,
        }
        self.assets = {
            name: self._environment.get_template(name).render().encode() for name in ASSETS
        }

    async def admit(self, request: Request, roles: frozenset[Role]) -> Caller:
        """Who asks for a page.

        Raises:
            HTTPException: As `Gate.admit`.
        """
        return await self._gate.admit(request, roles, request.cookies.get(COOKIE, ""))

    def csrf(self, request: Request) -> str:
        """What the forms that are written for this browser carry."""
        token = request.cookies.get(COOKIE, "")
        return hmac.new(self._secret, token.encode(), hashlib.sha256).hexdigest()

    def check(self, request: Request) -> None:
        """See that a form was written by this service for this browser.

        Raises:
            HTTPException: 403.
        """
        given = request.state.form.get("csrf", "")
        if not hmac.compare_digest(given.encode(), self.csrf(request).encode()):
            raise HTTPException(403, "this form is too old; go back, reload the page, try again")

    def page(
        self, request: Request, name: str, context: Mapping[str, Any], status: int = 200
    ) -> HTMLResponse:
        """A template, filled."""
        now = self.store.now()
        caller: Caller | None = getattr(request.state, "caller", None)
        text = self._environment.get_template(f"{name}.html.j2").render(
            {
                "ago": lambda at: views.ago(at, now),
                "csrf": self.csrf(request),
                "here": request.url.path,
                "lasts": lambda since: views.span(now - since),
                "refresh_s": 0,
                "user": caller if caller is not None and caller.name else None,
                **context,
            }
        )
        return HTMLResponse(text, status)

    def refusal(self, request: Request, error: HTTPException) -> Response:
        """Why somebody may not see a page, or a way to sign in."""
        if error.status_code == 401 and request.method == "GET":
            path = request.scope["raw_path"].decode("ascii")
            path += f"?{request.url.query}" if request.url.query else ""
            return RedirectResponse(f"/sign-in?{urlencode({'next': path})}", 303)
        title = {401: "Signed out", 403: "Not allowed", 404: "Not here", 429: "Too often"}
        context = {"title": title.get(error.status_code, "Not done"), "says": error.detail}
        return self._without_lab(request, context, error.status_code)

    def problem(self, request: Request, error: CorallineError) -> Response:
        """What the lab could not do."""
        is_device = isinstance(error, DeviceError)
        title = "The lab does not answer" if is_device else "Not done"
        status = 503 if is_device else 404 if isinstance(error, MissingError) else 400
        return self._without_lab(request, {"title": title, "says": str(error)}, status)

    def _without_lab(self, request: Request, context: Mapping[str, Any], status: int) -> Response:
        """A page that needs no database."""
        template = self._environment.get_template("problem.html.j2")
        base = {"csrf": "", "here": request.url.path, "refresh_s": 0, "user": None}
        return HTMLResponse(template.render({**base, **context}), status)

    def _asset(self, name: str) -> str:
        return f"/assets/{name}?v={hashlib.sha256(self.assets[name]).hexdigest()[:12]}"

    def _result(self, job_id: str, attempt: int) -> Result:
        return describe(self.store.result(job_id))

    def _power(self, job_id: str, attempt: int, traces: tuple[str, ...]) -> Chart:
        return describe_power(self.store.artifacts, traces, self.result(job_id, attempt))


async def _form(request: Request) -> dict[str, str]:
    """What a browser sends of a form."""
    sent = await limited(request, MOST_FORM_BYTES).body()
    try:
        return dict(parse_qsl(sent.decode(), keep_blank_values=True, max_num_fields=50))
    except ValueError:
        raise HTTPException(400, "this is not what a form sends") from None


def pages(store: Store, gate: Gate) -> tuple[Pages, list[APIRouter]]:
    """What writes the pages of a lab, and their routes."""
    renderer = Pages(store, gate)
    seen = _router(ANYONE)
    changing = _router(ADMINS)
    public = _router(None)

    @seen.get("/")
    def overview(request: Request) -> Response:
        return renderer.page(request, "overview", views.overview(store))

    @seen.get("/jobs")
    def jobs(
        request: Request,
        state: str = "",
        board: str = "",
        group: str = "",
        label: str = "",
        after: str = "",
    ) -> Response:
        filters = {"state": state, "board": board, "group": group, "label": label}
        given = {name: value for name, value in filters.items() if value}
        found = store.glance.chosen(
            state=_state(state) if state else None,
            board=board or None,
            group=group or None,
            label=_label(label) if label else None,
            after=after or None,
            limit=views.PAGE_ROWS + 1,
        )
        shown = found[: views.PAGE_ROWS]
        more = len(found) > len(shown)
        context = {
            "filters": filters,
            "filtered": bool(given),
            "states": STATES,
            "jobs": views.by_ids(store, shown),
            "newest": f"/jobs?{urlencode(given)}" if after else None,
            "older": f"/jobs?{urlencode({**given, 'after': shown[-1]})}" if more else None,
            "refresh_s": 0 if after else views.IDLE_S,
        }
        return renderer.page(request, "jobs", context)

    @seen.get("/jobs/{job_id}")
    def job(request: Request, job_id: str) -> Response:
        found = store.jobs([job_id])
        if not found:
            raise HTTPException(404, f"the lab has no job {job_id!r}")
        one = found[0]
        caller: Caller = request.state.caller
        is_open = one.state in ("queued", "running")
        has_result = one.state in ("done", "invalid")
        result = renderer.result(one.id, one.attempt) if has_result else None
        kept = store.files(job_id)
        drawn = [] if result is None else [*result.charts]
        problems = []
        if result is not None and (traces := traces_of(kept)):
            try:
                drawn.append(renderer.power(one.id, one.attempt, traces))
            except CorallineError as error:
                problems.append(f"The power trace cannot be shown: {error}")
        context = {
            "job": one,
            "facts": views.job_facts(one),
            "result": result,
            "charts": drawn,
            "problems": problems,
            "files": kept,
            "running": views.running(one, store.now()) if one.state == "running" else None,
            "ahead": store.glance.ahead(one.id) if one.state == "queued" else 0,
            "may_cancel": is_open and caller.role == "admin",
            "refresh_s": views.LIVE_S if is_open else 0,
        }
        return renderer.page(request, "job", context)

    @seen.get("/jobs/{job_id}/files/{name:path}")
    def file(request: Request, job_id: str, name: str) -> Response:
        kept = store.files(job_id).kept
        if name not in kept:
            raise HTTPException(404, f"job {job_id!r} has no file {name!r}")
        answer = files.get(kept[name].ref, request)
        plain = re.sub(r"[^\w.-]", "-", name)
        answer.headers["Content-Disposition"] = f'attachment; filename="{plain}"'
        return answer

    @changing.post("/jobs/{job_id}/cancel")
    def cancel(request: Request, job_id: str) -> Response:
        store.job(job_id)
        store.cancel([job_id], reason=_by(request, "cancelled"))
        return RedirectResponse(f"/jobs/{quote(job_id, safe='')}", 303)

    @changing.post("/boards/{name:path}/health")
    def set_health(request: Request, name: str) -> Response:
        form = request.state.form
        why = form.get("why", "").strip()
        if not why:
            raise UserError("say why: whoever looks at the board later will ask")
        if views.board(store, name) is None:
            raise HTTPException(404, f"the lab has no board {name!r}")
        store.health.set(name, form.get("state", ""), _by(request, why))
        return RedirectResponse(f"/boards/{quote(name, safe='')}", 303)

    @seen.get("/boards/{name:path}")
    def board(request: Request, name: str) -> Response:
        context = views.board(store, name)
        if context is None:
            raise HTTPException(404, f"the lab has no board {name!r}")
        caller: Caller = request.state.caller
        more = {
            "may_set": caller.role == "admin",
            "settable": BY_PEOPLE,
            "nightlies": renderer.trends.of_board(name),
        }
        return renderer.page(request, "board", {**context, **more})

    @seen.get("/trends")
    def trends(request: Request, nightly: str = "") -> Response:
        names = renderer.trends.nightlies()
        name = nightly or (names[0] if names else NIGHTLY)
        found, pending = renderer.trends.read(name)
        context = {
            "name": name,
            "names": names,
            "trends": found,
            "pending": pending,
            "refresh_s": views.LIVE_S if pending else views.IDLE_S,
        }
        return renderer.page(request, "trends", context)

    @seen.get("/trends/{series:path}")
    def trend(request: Request, series: str, nightly: str = NIGHTLY) -> Response:
        found, pending = renderer.trends.read(nightly)
        chosen = next((trend for trend in found if trend["series"] == series), None)
        if chosen is None and pending:
            waits = {"title": series, "says": "Its nights are being judged …", "refresh_s": 1}
            return renderer.page(request, "problem", waits)
        if chosen is None:
            raise HTTPException(404, f"nightly {nightly!r} has no series {series!r}")
        context = {
            "name": nightly,
            "trend": chosen,
            "says": trend_page.sentence(chosen),
            "charts": trending.charts(chosen),
            "metrics": trending.metrics(chosen),
            "metric_names": trend_page.METRICS,
            "times": trending.times,
            "confidence": f"{100 * CONFIDENCE:.0f} %",
            "pending": pending,
            "refresh_s": views.LIVE_S if pending else views.IDLE_S,
        }
        return renderer.page(request, "trend", context)

    @public.get("/sign-in")
    def sign_in(request: Request, next: str = "/") -> Response:
        return renderer.page(request, "sign_in", {"next": _here(next), "refused": ""})

    @public.post("/sign-in")
    async def signed_in(request: Request) -> Response:
        form = request.state.form
        token, then = form.get("token", "").strip(), _here(form.get("next", "/"))
        try:
            await gate.admit(request, ANYONE, token)
        except HTTPException as error:
            if error.status_code != 401:
                raise
            context = {"next": then, "refused": "This token is not valid, or it has expired."}
            return await to_thread.run_sync(renderer.page, request, "sign_in", context, 401)
        answer = RedirectResponse(then, 303)
        answer.set_cookie(
            COOKIE,
            token,
            max_age=SIGNED_IN_S,
            httponly=True,
            samesite="strict",
            secure=request.url.scheme == "https",
        )
        return answer

    @public.post("/sign-out")
    def sign_out() -> Response:
        answer = RedirectResponse("/sign-in", 303)
        answer.delete_cookie(COOKIE)
        return answer

    @public.get("/assets/{name}")
    def asset(name: str) -> Response:
        if name not in ASSETS:
            raise HTTPException(404, f"there is no {name!r}")
        # The pages name an asset with a digest of its content.
        kept = {"Cache-Control": "public, max-age=31536000, immutable"}
        return Response(renderer.assets[name], media_type=ASSETS[name], headers=kept)

    return renderer, [changing, seen, public]


def _router(roles: frozenset[Role] | None) -> APIRouter:
    kind = type("Route", (PageRoute,), {"roles": roles})
    return APIRouter(route_class=kind, include_in_schema=False)


def _by(request: Request, what: str) -> str:
    """What somebody did, and who it was where that is known."""
    caller: Caller = request.state.caller
    return f"{what} (by {caller.name})" if caller.name else what


def _here(path: str) -> str:
    """A path of this site; what leads elsewhere is the overview."""
    return path if re.match(r"/(?![/\\])", path) and not re.search(r"[\x00-\x20]", path) else "/"


def _state(text: str) -> State:
    if text not in STATES:
        raise UserError(f"state {text!r} is not known; choose {', '.join(STATES)}")
    return text


def _label(text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not (name and equals):
        raise UserError(f"label {text!r} must be of the form NAME=VALUE")
    return name, value
