#!/bin/sh
# Install the folder form of MINOOTS from where this script lies; nothing is fetched.
#
#   ./install.sh              /opt/minoots/VERSION, `current` link, /usr/local/bin/minoots, systemd unit
#   ./install.sh --root DIR   the same below DIR, without a user or systemd: to look at it, or for images
#   ./install.sh --remove     take the program away; configuration and timers stay
#
# Running it again with another version is the upgrade: the link moves, the node is restarted if it
# runs, and the version before stays beside it, so that `ln -sfn OLD /opt/minoots/current` goes back.
set -eu

here=$(cd "$(dirname "$0")" && pwd)
root=
remove=
while [ $# -gt 0 ]; do
    case $1 in
        --root) [ $# -ge 2 ] || { echo "install.sh: --root needs a folder" >&2; exit 2; }; root=$2; shift 2 ;;
        --remove) remove=1; shift ;;
        *) echo "install.sh: unknown word $1; see the head of this script" >&2; exit 2 ;;
    esac
done
if [ -z "$root" ] && [ "$(id -u)" != 0 ]; then
    echo "install.sh: /opt and /etc need root; or give --root DIR" >&2
    exit 1
fi
systemd=
[ -n "$root" ] || [ ! -d /run/systemd/system ] || systemd=1

home=$root/opt/minoots
if [ -n "$remove" ]; then
    [ -z "$systemd" ] || systemctl disable --now minoots.service 2>/dev/null || true
    rm -rf "$home"
    rm -f "$root/usr/local/bin/minoots" "$root/etc/systemd/system/minoots.service"
    [ -z "$systemd" ] || systemctl daemon-reload
    echo "removed; $root/etc/minoots and $root/var/lib/minoots are kept"
    exit 0
fi

if [ -f "$here/SHA256SUMS" ]; then
    (cd "$here" && sha256sum --check --quiet SHA256SUMS) || {
        echo "install.sh: the files are not those that were released; nothing was installed" >&2
        exit 1
    }
fi
version=$(cat "$here/VERSION")
"$here/minoots.dist/minoots" version >/dev/null || {
    echo "install.sh: the program does not run here: it needs x86-64 Linux and the glibc that README names" >&2
    exit 1
}

# A copy beside, then a rename: an installation that is cut short leaves no half of a version.
mkdir -p "$home" "$root/usr/local/bin"
rm -rf "$home/.new"
cp -a "$here/minoots.dist" "$home/.new"
rm -rf "${home:?}/$version"
mv "$home/.new" "$home/$version"
ln -sfn "$version" "$home/current"
ln -sfn /opt/minoots/current/minoots "$root/usr/local/bin/minoots"

mkdir -p "$root/etc/minoots" "$root/etc/systemd/system"
if [ -f "$root/etc/minoots/minoots.toml" ]; then
    cp "$here/minoots.toml" "$root/etc/minoots/minoots.toml.new"
    echo "kept /etc/minoots/minoots.toml; the new defaults are in minoots.toml.new"
else
    cp "$here/minoots.toml" "$root/etc/minoots/minoots.toml"
fi
cp "$here/minoots.service" "$root/etc/systemd/system/minoots.service"

if [ -z "$root" ]; then
    getent group minoots >/dev/null || groupadd --system minoots
    getent passwd minoots >/dev/null || useradd --system --gid minoots --no-create-home \
        --home-dir /var/lib/minoots --shell /usr/sbin/nologin minoots
    install -d -m 0700 -o minoots -g minoots /var/lib/minoots
fi
if [ -n "$systemd" ]; then
    systemctl daemon-reload
    systemctl try-restart minoots.service
    echo "installed $version; start it with: systemctl enable --now minoots"
else
    echo "installed $version in $home"
fi
