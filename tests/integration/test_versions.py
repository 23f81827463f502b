"""A shard with a version in its URL (``?versionId=``) is read in that version, not the newest."""

from pathlib import Path

import pytest

from pipeline.sources.listing import expand_inputs
from pipeline.sources.shards import open_shard
from tests.integration.servers import S3Server
from tests.pipeline.makers import samples, tar_bytes

pytestmark = pytest.mark.integration


def test_versions_of_one_object(moto_server: S3Server, tmp_path: Path) -> None:
    fs = moto_server.filesystem()
    fs.mkdir("versions")
    fs.call_s3(
        "put_bucket_versioning", Bucket="versions", VersioningConfiguration={"Status": "Enabled"}
    )
    urls = []
    for count in (1, 2):
        answer = fs.call_s3(
            "put_object", Bucket="versions", Key="x.tar", Body=tar_bytes(samples(count))
        )
        urls.append(f"s3://versions/x.tar?versionId={answer['VersionId']}")
    shards = expand_inputs([*urls, "s3://versions/x.tar"], moto_server.options())
    assert {shard.url for shard in shards} == {*urls, "s3://versions/x.tar"}
    assert {shard.stem for shard in shards} == {"x"}
    found = {}
    for shard in shards:
        with open_shard(shard, tmp_path, moto_server.options()) as opened:
            found[shard.url] = len(opened.samples)
    assert found == {urls[0]: 1, urls[1]: 2, "s3://versions/x.tar": 2}
