"""A bucket at an endpoint: `make` makes it with versions, `lock` with Object Lock; any other word is a key, whose versions and markers are counted.

    bucket.py ENDPOINT BUCKET make|lock|KEY
"""

import json
import sys

import boto3

endpoint, bucket, what = sys.argv[1:]
s3 = boto3.client("s3", endpoint_url=endpoint, region_name="us-east-1", aws_access_key_id="mcpgtest",
                  aws_secret_access_key="mcpg-test-secret")
if what == "make":
    s3.create_bucket(Bucket=bucket)
    s3.put_bucket_versioning(Bucket=bucket, VersioningConfiguration={"Status": "Enabled"})
    print(json.dumps({"made": True}))
elif what == "lock":
    s3.create_bucket(Bucket=bucket, ObjectLockEnabledForBucket=True)
    print(json.dumps({"made": True}))
else:
    listed = s3.list_object_versions(Bucket=bucket, Prefix=what)
    print(json.dumps({"versions": len(listed.get("Versions", [])) + len(listed.get("DeleteMarkers", []))}))
