"""A key of KMS at an endpoint: `kms_key.py ENDPOINT make` makes one behind the alias `alias/mcpg`; `kms_key.py ENDPOINT ARN` prints a key's state."""

import sys

import boto3

kms = boto3.client("kms", endpoint_url=sys.argv[1], region_name="us-east-1", aws_access_key_id="mcpgtest",
                   aws_secret_access_key="mcpg-test-secret")
if sys.argv[2] == "make":
    key = kms.create_key()["KeyMetadata"]["KeyId"]
    kms.create_alias(AliasName="alias/mcpg", TargetKeyId=key)
else:
    print(kms.describe_key(KeyId=sys.argv[2])["KeyMetadata"]["KeyState"])
