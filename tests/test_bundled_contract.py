"""Every operation that a bundled artifact offers is served alike by both transports."""

from pathlib import Path

import httpx
import pytest

from service.core.manifest import read_manifest
from service.rpc.pb.generation_service_pb2_grpc import GenerationServiceStub
from service.settings import Settings
from tests.contract import check_operation

ARTIFACTS = Path(__file__).parent.parent / "artifacts"
MANIFESTS = [read_manifest(path.parent) for path in sorted(ARTIFACTS.glob("*/1/manifest.json"))]


@pytest.fixture
def settings() -> Settings:
    return Settings(model_repository=ARTIFACTS, default_models=(), workers=2)


@pytest.mark.slow
@pytest.mark.parametrize("manifest", MANIFESTS, ids=lambda each: each.name)
async def test_every_operation_of_a_bundled_model_is_served_alike_by_both_transports(
    manifest, client: httpx.AsyncClient, stub: GenerationServiceStub
) -> None:
    assert manifest.operations
    for operation in manifest.operations:
        await check_operation(manifest, operation, client, stub)
