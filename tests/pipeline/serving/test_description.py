"""The OpenAPI description: complete, and true for valid and invalid requests."""

from pathlib import Path
from typing import Any

import hypothesis
import pytest
import schemathesis
from fastapi.testclient import TestClient
from openapi_spec_validator import validate
from schemathesis import GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from pipeline.serving.access import ANY_HOST, Access
from pipeline.serving.app import create_app
from pipeline.serving.service import PreviewService
from tests.pipeline.conftest import Make
from tests.pipeline.makers import ToyCodec, samples, write_tar

CHECKS = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
]
ALLOWED, FORBIDDEN = GenerationMode.POSITIVE, GenerationMode.NEGATIVE
PICTURES = [
    *("/v1/images/{key}", "/v1/images/{key}/info", "/v1/images/{key}/stream"),
    "/v1/originals/{key}",
]
# Where any text is a key, nothing is forbidden.
MODES = [("/v1/images/{key}", FORBIDDEN), *((path, ALLOWED) for path in PICTURES)]


@pytest.fixture
def described(make_dataset: Make, toy: ToyCodec, tmp_path: Path) -> Any:
    write_tar(tmp_path / "a.tar", samples(3))
    dataset = make_dataset([str(tmp_path / "a.tar")])
    app = create_app(PreviewService(dataset, toy), access=Access((ANY_HOST,)))
    return schemathesis.openapi.from_asgi("/openapi.json", app)


def ask(operation: Any, mode: GenerationMode, examples: int, **fixed: Any) -> list[int]:
    """The statuses of requests that the description allows or forbids, the same in every run."""
    statuses: list[int] = []

    @hypothesis.given(case=operation.as_strategy(generation_mode=mode, **fixed))
    @hypothesis.settings(
        max_examples=examples,
        derandomize=True,
        database=None,
        suppress_health_check=list(hypothesis.HealthCheck),
    )
    def every(case: schemathesis.Case) -> None:
        statuses.append(case.call_and_validate(checks=CHECKS).status_code)

    every()
    return statuses


@pytest.mark.parametrize(
    ("path", "mode"), [*MODES, ("/v1/images", ALLOWED), ("/v1/images", FORBIDDEN)]
)
def test_no_request_makes_the_server_fail(described: Any, path: str, mode: GenerationMode) -> None:
    statuses = ask(described[path]["GET"], mode, 60)
    if mode == FORBIDDEN:
        assert 422 in statuses


@pytest.mark.parametrize(("path", "mode"), MODES)
def test_nor_one_for_a_picture_that_is_there(
    described: Any, path: str, mode: GenerationMode
) -> None:
    """Random keys find nothing: only here do other parameters come to be looked at."""
    statuses = ask(described[path]["GET"], mode, 40, path_parameters={"key": "s0001"})
    if path == "/v1/images/{key}":
        assert (200 if mode == ALLOWED else 422) in statuses


@pytest.mark.parametrize("path", ["/v1/dataset", "/healthz", "/metrics"])
def test_what_takes_no_parameters_is_as_described(described: Any, path: str) -> None:
    ask(described[path]["GET"], ALLOWED, 3)


def test_the_description_is_valid_and_complete(client: TestClient) -> None:
    told = client.get("/openapi.json").json()
    validate(told)
    assert set(told["paths"]) == {
        *PICTURES,
        "/v1/images",
        *("/v1/dataset", "/healthz", "/metrics"),
    }
    for path, methods in told["paths"].items():
        (operation,) = methods.values()
        assert operation["summary"]
        for parameter in operation.get("parameters", ()):
            explained = parameter.get("description") or parameter["name"] in (
                *("min_width", "max_width", "min_height", "max_height", "limit"),
            )
            assert explained, (path, parameter["name"])
        if path.startswith("/v1"):
            assert "503" in operation["responses"]
            assert "Retry-After" in operation["responses"]["503"]["headers"]
        for status, response in operation["responses"].items():
            if status.startswith(("4", "5")):
                (content,) = response["content"].values()
                assert content["schema"] == {"$ref": "#/components/schemas/Problem"}
                assert "example" in content
    layers = told["paths"]["/v1/images/{key}"]["get"]["parameters"]
    (one,) = (parameter for parameter in layers if parameter["name"] == "layers")
    assert {"minimum": 1, "maximum": 4, "type": "integer"} in one["schema"]["anyOf"]
