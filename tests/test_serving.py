"""Serving: transactions read as batch scoring reads them, and answered over HTTP."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import httpx
import msgspec
import numpy as np
import pyarrow as pa
import pytest
import schemathesis
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from pydantic import ByteSize
from schemathesis import GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import response_schema_conformance, status_code_conformance

from fraud_ray.data.contract import check_type
from fraud_ray.data.kinds import Reading, from_text, typed
from fraud_ray.model.encoder import FeatureColumn
from fraud_ray.model.scorer import GraphScorer, graph_inputs
from fraud_ray.serving.app import create_app
from fraud_ray.serving.requests import Batch, Field, RequestFault
from fraud_ray.serving.served import Served
from fraud_ray.serving.service import Service
from fraud_ray.serving.tokens import Tokens
from fraud_ray.settings import DataSettings, ServingSettings
from tests.handmade import expected, write_bundle

DATA = DataSettings.model_validate(
    {
        "path": "unused",
        "columns": {
            "transaction_id": {"kind": "id"},
            "amount": {"kind": "amount", "min": 0},
            "night": {"kind": "boolean"},
            "merchant": {"kind": "categorical"},
            "is_fraud": {"kind": "label"},
        },
    }
)
COLUMNS = (
    FeatureColumn("n", "numeric"),
    FeatureColumn("b", "boolean"),
    FeatureColumn("t", "boolean", true="2"),
    FeatureColumn("c", "categorical"),
    FeatureColumn("at", "timestamp"),
    FeatureColumn("s", "timestamp", unit="s"),
    FeatureColumn("ns", "timestamp", unit="ns"),
)


def as_batch_scoring(column: FeatureColumn, value: Any) -> np.ndarray | None:
    """The graph's input of a partition's column that holds one value; None where batch scoring refuses it."""
    reading = Reading.of_model(column)
    held = pa.array([value], pa.uint64()) if type(value) is int and value > 2**63 - 1 else pa.array([value])
    written = pa.chunked_array([held])
    if column.kind == "timestamp" and isinstance(value, str):  # as CSV holds them
        written = from_text(written, reading)
    table = typed(pa.table({column.name: written}), {}, {column.name: reading})
    return None if check_type(table, column.name, reading) else graph_inputs(table, [column])[column.name]


values = (
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.integers(-300, 300)
    | st.integers(1_600_000_000, 1_800_000_000)
    | st.floats()
    | st.integers(-(2**55), 2**55).map(float)
    | st.text(st.characters(codec="utf-8"), max_size=70)
    | st.datetimes().map(str)
    | st.datetimes(timezones=st.timezones()).map(lambda moment: moment.isoformat())
    | st.from_regex(
        r"\A ?20[0-2]\d-0[1-9]-[0-3]\d([ T][0-2]\d(:[0-6]\d(:[0-6]\d([.]\d{1,8})?)?)?(Z|UTC|[+-]\d\d:?\d\d)?)?\Z"
    )
)


@given(st.sampled_from(COLUMNS), values)
@example(COLUMNS[2], 2.0)
@example(COLUMNS[3], 1e10)
@example(COLUMNS[3], -0.0)
@example(COLUMNS[6], -1_500)
@example(COLUMNS[6], 2**63)
@example(COLUMNS[4], float("nan"))
@settings(max_examples=500, deadline=None)
def test_a_value_is_read_as_batch_scoring_reads_it_or_is_a_fault_that_names_it(column: FeatureColumn, value: Any):
    wanted = as_batch_scoring(column, value)
    try:
        read = Field.of(Reading.of_model(column)).read("x", [value])
    except RequestFault as fault:
        assert fault.field == "transactions[0].x"
        # Online is stricter with times that only batch scoring takes: digits in quotes, years that no calendar has.
        assert wanted is None or column.kind == "timestamp" or (column.kind == "boolean" and abs(value) > 2**53)
        return
    found = Batch({column.name: read}, [None], [None], []).inputs([column])[column.name]
    assert wanted is not None, (column.name, value, found)
    np.testing.assert_array_equal(found, wanted)


TOKEN = "t" * 32
ROW = {"transaction_id": "t1", "amount": 12.5, "night": True, "merchant": "shop"}


def served_of(folder: Path, data: DataSettings = DATA) -> Served:
    scorer = GraphScorer((folder / "model.onnx").read_bytes())
    return Served("fraud", "3", scorer, data, None, None, folder, None)


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Served:
    return served_of(write_bundle(tmp_path_factory.mktemp("serving") / "bundle"))


@pytest.fixture
def service(served: Served) -> Service:
    return Service(lambda: served, ServingSettings(max_transactions=50, max_body=ByteSize(4_096)))


@pytest.fixture
def client(service: Service, tmp_path: Path) -> httpx.AsyncClient:
    (tmp_path / "tokens").write_text(f"{TOKEN}\n")
    transport = httpx.ASGITransport(create_app(service, Tokens(tmp_path / "tokens")))
    bearer = {"Authorization": f"Bearer {TOKEN}"}
    return httpx.AsyncClient(transport=transport, base_url="http://here", headers=bearer)


@pytest.mark.asyncio
async def test_transactions_are_scored_in_their_order(client):
    rows = [ROW, {**ROW, "transaction_id": 7, "amount": 250, "merchant": None, "unknown": [1]}]
    reply = await client.post("/score", json={"transactions": rows})
    assert reply.status_code == 200
    first, second = reply.json()["scores"]
    assert list(first) == ["transaction_id", "probability", "decision", "model_version"]
    assert [first["transaction_id"], second["transaction_id"]] == ["t1", 7]
    wanted = [expected(12.5, 1.0, "shop"), expected(250, 1.0, "")]
    assert [first["probability"], second["probability"]] == pytest.approx(wanted, rel=1e-6)
    assert [first["decision"], second["decision"]] == [True, True]
    assert first["model_version"] == 3


FAULTS = {
    "not JSON": (b'{"transactions": [', 400, None),
    "no UTF-8": (b'{"transactions": [{"merchant": "\xff"}]}', 400, None),
    "another shape": (b'{"transactions": {}}', 422, "transactions"),
    "a row that is none": (b'{"transactions": [{}, 1]}', 422, "transactions[1]"),
    "a key too much": (b'{"transactions": [], "more": 1}', 422, None),
    "a column is absent": ({k: v for k, v in ROW.items() if k != "night"}, 422, "transactions[0].night"),
    "text for a number": ({**ROW, "amount": "12.5"}, 422, "transactions[0].amount"),
    "a number of 400 digits": (b'{"transactions": [{"amount": 1' + b"0" * 400 + b"}]}", 422, "transactions[0].amount"),
    "a list for text": ({**ROW, "merchant": []}, 422, "transactions[0].merchant"),
    "too many": (msgspec.json.encode({"transactions": [{}] * 51}), 413, "transactions"),
    "too large": (b" " * 5_000, 413, None),
}


@pytest.mark.faults("16", "requests with too many rows or bytes", "413, and what is wrong where")
@pytest.mark.quick
@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.asyncio
async def test_a_mistake_is_answered_with_what_is_wrong_and_where(client, fault):
    body, status, field = FAULTS[fault]
    content = body if isinstance(body, bytes) else msgspec.json.encode({"transactions": [body]})
    reply = await client.post("/score", content=content)
    assert (reply.status_code, reply.json()["field"]) == (status, field)
    assert reply.json()["error"]


@pytest.mark.asyncio
async def test_who_bears_no_token_is_refused_and_tokens_can_be_changed_while_it_runs(client, tmp_path):
    body = {"transactions": [ROW]}
    for header in ({"Authorization": "Bearer wrong"}, {"Authorization": TOKEN}, {"Authorization": "Bearer "}):
        reply = await client.post("/score", json=body, headers=header)
        assert (reply.status_code, reply.headers["www-authenticate"]) == (401, "Bearer")
    (tmp_path / "tokens").write_text(f"{TOKEN}\nsecond\n")
    assert (await client.post("/score", json=body, headers={"Authorization": "Bearer second"})).status_code == 200
    (tmp_path / "tokens").write_text("second\n")
    assert (await client.post("/score", json=body)).status_code == 401
    assert (await client.get("/v2/health/live")).status_code == 200


@pytest.mark.asyncio
async def test_until_a_version_is_ready_callers_are_told_to_come_again(served):
    service = Service(lambda: None, ServingSettings())
    transport = httpx.ASGITransport(create_app(service, None))
    async with httpx.AsyncClient(transport=transport, base_url="http://here") as client:
        for reply in (await client.get("/v2/health/ready"), await client.post("/score", json={"transactions": [ROW]})):
            assert (reply.status_code, reply.headers["retry-after"]) == (503, "1")
        assert (await client.get("/v2/health/live")).status_code == 200


@pytest.mark.asyncio
async def test_metrics_count_requests_and_decisions_and_name_the_version(client):
    await client.post("/score", json={"transactions": [ROW, {**ROW, "amount": -1_000}]})
    await client.post("/score", json={"transactions": [{}]})
    await client.get("/nowhere")
    page = (await client.get("/metrics")).text
    for line in (
        'fraud_ray_requests_total{route="/score",status="200"} 1.0',
        'fraud_ray_requests_total{route="/score",status="422"} 1.0',
        'fraud_ray_requests_total{route="other",status="404"} 1.0',
        'fraud_ray_decisions_total{decision="alert"} 1.0',
        'fraud_ray_decisions_total{decision="none"} 1.0',
        'fraud_ray_step_seconds_count{step="graph"} 1.0',
        'fraud_ray_model_info{name="fraud",version="3"} 1.0',
    ):
        assert line in page.splitlines()
    assert TOKEN not in page


@pytest.mark.asyncio
async def test_a_fault_of_our_own_is_logged_without_a_value_and_answered_as_json(client, service, caplog):
    def broken() -> Served:
        raise ValueError("card 4711")

    service.current = broken
    reply = await client.post("/score", json={"transactions": [ROW]})
    assert reply.status_code == 500
    assert "unexpected ValueError at" in caplog.text
    assert "4711" not in caplog.text + reply.text


def tensors(binary: bool, **changed: Any) -> tuple[bytes, dict[str, str]]:
    """Body and headers of an inference of two rows, as KServe's and Triton's clients send them."""
    columns: dict[str, tuple[str, list[Any]]] = {
        "amount": ("FP64", [12.5, 250.0]),
        "night": ("BOOL", [True, False]),
        "merchant": ("BYTES", ["shop", "café"]),
    }
    inputs, behind = [], b""
    for name, (datatype, values) in columns.items():
        tensor: dict[str, Any] = {"name": name, "datatype": datatype, "shape": [2, 1]}
        if binary:
            packed = {"FP64": lambda v: np.array(v).tobytes(), "BOOL": lambda v: np.array(v).tobytes()}.get(
                datatype, lambda v: b"".join(len(t.encode()).to_bytes(4, "little") + t.encode() for t in v)
            )(values)
            behind += packed
            tensor["parameters"] = {"binary_data_size": len(packed)}
        else:
            tensor["data"] = [[value] for value in values]
        inputs.append({**tensor, **changed.pop(name, {})})
    head = msgspec.json.encode({"id": "9", "inputs": inputs, **changed})
    return head + behind, {"Inference-Header-Content-Length": str(len(head))} if binary else {}


@pytest.mark.parametrize("binary", [False, True])
@pytest.mark.asyncio
async def test_tensors_score_as_json_does(client, binary):
    rows = [{"amount": 12.5, "night": True, "merchant": "shop"}, {"amount": 250, "night": False, "merchant": "café"}]
    scores = (await client.post("/score", json={"transactions": rows})).json()["scores"]
    body, headers = tensors(binary, parameters={"binary_data_output": binary})
    for path in ("/v2/models/fraud/infer", "/v2/models/fraud/versions/3/infer"):
        reply = await client.post(path, content=body, headers=headers)
        assert reply.status_code == 200, reply.text
        length = int(reply.headers.get("inference-header-content-length", len(reply.content)))
        told = msgspec.json.decode(reply.content[:length])
        assert (told["model_name"], told["model_version"], told["id"]) == ("fraud", "3", "9")
        assert [(o["name"], o["datatype"], o["shape"]) for o in told["outputs"]] == [
            ("probability", "FP32", [2]),
            ("decision", "BOOL", [2]),
        ]
        if binary:
            probability = np.frombuffer(reply.content[length : length + 8], np.float32).tolist()
            decision = np.frombuffer(reply.content[length + 8 :], np.bool_).tolist()
        else:
            probability, decision = (output["data"] for output in told["outputs"])
        assert probability == [score["probability"] for score in scores]
        assert decision == [score["decision"] for score in scores]


TENSOR_FAULTS = {
    "a tensor is absent": ({"amount": {"name": "other"}}, {}, "inputs.amount"),
    "another shape": ({"amount": {"shape": [1, 2]}}, {}, "inputs.amount"),
    "a shape of another length": ({"amount": {"shape": [3]}}, {}, "inputs.amount"),
    "another number of rows": ({"night": {"shape": [1], "data": [True]}}, {}, "inputs.night"),
    "text for a number": ({"amount": {"data": ["a", "b"]}}, {}, "transactions[0].amount"),
    "an unknown output": ({"outputs": [{"name": "logit"}]}, {}, "outputs.logit"),
    "bytes that are not there": ({"amount": {"parameters": {"binary_data_size": 999}}}, {}, "inputs.amount"),
    "a length that is none": ({}, {"Inference-Header-Content-Length": "x"}, "Inference-Header-Content-Length"),
}


@pytest.mark.parametrize("fault", TENSOR_FAULTS)
@pytest.mark.asyncio
async def test_a_mistake_in_tensors_is_answered_with_what_is_wrong_and_where(client, fault):
    changed, headers, field = TENSOR_FAULTS[fault]
    body, _ = tensors(False, **changed)
    reply = await client.post("/v2/models/fraud/infer", content=body, headers=headers)
    assert (reply.status_code // 100, reply.json()["field"]) == (4, field)


@pytest.mark.asyncio
async def test_bytes_that_are_no_values_are_a_fault(client):
    body, headers = tensors(True)
    for cut in range(1, 35, 3):
        assert (await client.post("/v2/models/fraud/infer", content=body[:-cut], headers=headers)).status_code == 422
    broken = body[:-1] + b"\xff"
    assert (await client.post("/v2/models/fraud/infer", content=broken, headers=headers)).status_code == 422
    more = await client.post("/v2/models/fraud/infer", content=body + b"more", headers=headers)
    assert (more.status_code, more.json()["field"]) == (400, None)


@given(st.integers(0, 400), st.integers(0, 40), st.binary(max_size=12))
@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_tensors_with_any_bytes_changed_are_scored_or_refused(client, at, count, replaced):
    body, headers = tensors(True)
    sent = body[:at] + replaced + body[at + count :]
    reply = asyncio.run(client.post("/v2/models/fraud/infer", content=sent, headers=headers))
    assert reply.status_code in {200, 400, 422}


@pytest.mark.asyncio
async def test_where_no_token_is_needed_pages_in_a_browser_may_not_ask(service):
    transport = httpx.ASGITransport(create_app(service, None))
    async with httpx.AsyncClient(transport=transport, base_url="http://here") as client:
        body = {"transactions": [ROW]}
        assert (await client.post("/score", json=body)).status_code == 200
        assert (await client.post("/score", json=body, headers={"Origin": "http://there"})).status_code == 403


@pytest.mark.asyncio
async def test_the_model_says_what_it_reads_and_what_it_waits_for(client, service):
    service.waiting = lambda: ("4", "its past is not primed yet")
    told = (await client.get("/v2/models/fraud")).json()
    assert [(i["name"], i["datatype"]) for i in told["inputs"]] == [
        ("amount", "FP64"),
        ("night", "BOOL"),
        ("merchant", "BYTES"),
    ]
    assert told["waiting"] == {"version": "4", "reason": "its past is not primed yet"}
    assert (await client.get("/v2/models/fraud/versions/3/ready")).json() == {"name": "fraud", "ready": True}
    for other in ("/v2/models/other", "/v2/models/fraud/versions/4/ready"):
        assert (await client.get(other)).status_code == 404


@pytest.mark.asyncio
async def test_nobody_is_sent_elsewhere_with_a_token(client):
    for path in ("/score/", "/v2/", "/labels/"):
        assert (await client.post(path, json={})).status_code == 404


CHECKS = [not_a_server_error, status_code_conformance, response_schema_conformance]


@pytest.mark.parametrize("mode", GenerationMode)
def test_whatever_is_sent_is_answered_as_it_is_described(service, mode):
    schema = schemathesis.openapi.from_asgi("/openapi.json", create_app(service, None))
    operations = [found.ok() for found in schema.get_all_operations()]
    # What takes neither body nor parameters can be asked in one way only.
    for operation in operations if mode is GenerationMode.POSITIVE else [o for o in operations if o.method == "post"]:

        @given(operation.as_strategy(generation_mode=mode))
        @settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)
        def is_answered(case: schemathesis.Case) -> None:
            case.call_and_validate(checks=CHECKS)

        is_answered()


@pytest.mark.asyncio
async def test_the_page_of_documents_needs_nothing_from_elsewhere(client):
    page = (await client.get("/docs")).text
    assert "<script>" in page
    assert "://" not in page
