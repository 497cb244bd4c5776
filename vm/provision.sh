#!/bin/sh
# Runs as root within the virtual machine, each time that `netbootd vm up` does: brings it to what was sent with it, and
# touches nothing that is so already. Its last line on stdout says what changed: any of code, site, network, environment,
# units.
#
#   provision.sh MAC VERSION     /srv/netbootd/new holds code/ (absent: VERSION from the package index), site/, home/
#                                netplan.yaml and digests/; absent altogether, it only looks that all is as it was left
set -eu
mac=$1 version=$2
new=/srv/netbootd/new now=/srv/netbootd venv=/opt/netbootd netplan=/etc/netplan/60-netbootd.yaml changed=

say() { echo "netbootd: $*" >&2; }
same() { [ ! -e "$new" ] || { [ -e "$now/digests/$1" ] && cmp -s "$new/digests/$1" "$now/digests/$1"; }; }
swap() { # the new folder in place of the old one
    rm -rf "$now/$1.old"
    [ ! -e "$now/$1" ] || mv "$now/$1" "$now/$1.old"
    mv "$new/$1" "$now/$1"
    rm -rf "$now/$1.old"
}
mkdir -p "$now/digests"

# ---------------------------------------------------------------- the program
if ! same code || ! "$venv/bin/netbootd" --version > /dev/null 2>&1; then
    say "installing netbootd"
    "$venv/bin/python" -c 'import pip' 2> /dev/null || python3 -m venv --clear "$venv"
    [ ! -e "$new" ] || rm -rf "$now/code" # a checkout's before, and the package index's now
    [ ! -d "$new/code" ] || swap code
    what=$now/code
    [ -d "$what" ] || what=netbootd==$version
    # a folder is installed anew each time, also where its version is the one that is there
    "$venv/bin/pip" install --quiet --disable-pip-version-check --upgrade "$what"
    [ ! -e "$new/digests/code" ] || cp "$new/digests/code" "$now/digests/code"
    changed="$changed code"
fi

# ---------------------------------------------------------------- the configuration
if ! same site; then
    swap site
    swap home
    chmod -R go-rwx "$now/site" "$now/home" # there may be secrets; the service reads them by its capability
    cp "$new/digests/site" "$now/digests/site"
    changed="$changed site"
fi

# ---------------------------------------------------------------- the bridged card
if [ -e "$new/netplan.yaml" ] && ! cmp -s "$new/netplan.yaml" $netplan; then
    say "configuring the bridged card"
    (umask 077 && cp "$new/netplan.yaml" $netplan)
    netplan apply
    changed="$changed network"
fi

# ---------------------------------------------------------------- what the services and a person's shell are told
cat > /usr/local/bin/netbootd.new << 'WRAPPER'
#!/bin/sh
# netbootd as the services have it: its configuration, its state folder, the network that it serves
set -a
. /etc/default/netbootd
exec /opt/netbootd/bin/netbootd "$@"
WRAPPER
chmod 755 /usr/local/bin/netbootd.new
mv /usr/local/bin/netbootd.new /usr/local/bin/netbootd
cat > "$now/environment" << ENVIRONMENT
# Written by netbootd vm up.
HOME=$now/home
NETBOOTD_CONFIG=$now/site/netbootd.toml
NETBOOTD_STATE=/var/lib/netbootd
# The bridged card, by its MAC: only there are nodes. The default route is Multipass's own network.
NETBOOTD_INTERFACE=$mac
ENVIRONMENT
if ! cmp -s "$now/environment" /etc/default/netbootd; then
    cp "$now/environment" /etc/default/netbootd
    changed="$changed environment"
fi

# ---------------------------------------------------------------- the units
told=$(/usr/local/bin/netbootd doctor --install-units --json)
case $told in
*'"changed": true'*) changed="$changed units" ;;
esac
case " $changed " in
*" code "* | *" environment "* | *" units "*) systemctl restart netbootd.service ;;
*" site "*) systemctl reload-or-restart netbootd.service ;;
*) systemctl start netbootd.service ;;
esac
rm -rf "$new"
echo "changed:$changed"
