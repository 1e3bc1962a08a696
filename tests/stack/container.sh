# What the compose file promises of our containers, for one command: a read-only root with a few writable directories, a user of its own,
# no capabilities, no new privileges. Run by root as: unshare --mount sh container.sh PYTHON "DIRECTORY ..." COMMAND [ARGUMENT ...]
set -e
python_home=$(dirname "$(dirname "$(readlink -f "$1")")")
writable=$2
shift 2
mount --make-rprivate /
# Python may be installed where only root can look.
mount -t tmpfs -o mode=755 tmpfs /mnt
mkdir /mnt/python
mount --bind "$python_home" /mnt/python
mount -t tmpfs -o mode=755 tmpfs /root
mkdir -p "$python_home"
mount --bind /mnt/python "$python_home"
# The user that the image has.
{ cat /etc/passwd; echo bliss:x:50000:50000::/tmp:/bin/sh; } > /mnt/passwd
mount --bind /mnt/passwd /etc/passwd
mount -o remount,ro,bind /
for directory in $writable; do
    mount --bind "$directory" "$directory"
    mount -o remount,rw,bind "$directory"
done
exec setpriv --reuid=50000 --regid=50000 --clear-groups --no-new-privs --bounding-set=-all --inh-caps=-all "$@"
