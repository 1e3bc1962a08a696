# The object store: Versity's S3 gateway over a directory, as a user of its own. The volume needs extended attributes (ext4, xfs, btrfs).
FROM versity/versitygw:v1.8.0@sha256:30292fc2eeacc67a36993b01f7a7a5e3361a19cced0e80c1d71cfa2a4b0a2499

RUN mkdir -p /data && chown 50000:50000 /data

USER 50000
