# Read by the customize.sh of each distribution, inside the tree. /bake holds masked-*.txt, grub-probe and key.pub.

useradd --create-home --shell /bin/bash ops
printf 'ops ALL=(ALL) NOPASSWD: ALL\n' >/etc/sudoers.d/ops
chmod 0440 /etc/sudoers.d/ops
install -d -m 0700 /root/.ssh
install -m 0600 /bake/key.pub /root/.ssh/authorized_keys
install -d -m 0700 -o ops -g ops /home/ops/.ssh
install -m 0600 -o ops -g ops /bake/key.pub /home/ops/.ssh/authorized_keys

systemctl --quiet enable systemd-networkd.service
# shellcheck disable=SC2046
systemctl --quiet mask $(cat /bake/masked-units.txt)
mkdir -p /etc/systemd/system-generators
for generator in $(cat /bake/masked-generators.txt); do
    ln -s /dev/null "/etc/systemd/system-generators/$generator"
done
# Not started at boot; D-Bus still starts it when asked, as `reboot` does.
ln -s /dev/null /etc/systemd/system/multi-user.target.wants/systemd-logind.service
# Login sessions would start logind and a user manager at each SSH login, seconds on an emulated processor.
DEBIAN_FRONTEND=noninteractive pam-auth-update --disable systemd
mkdir -p /run/sshd
sshd -t
# A letter first: boot entries may be named by this id, and GRUB reads an id that begins with a digit as an index.
echo c0ffee00000040008000746f706f7669 >/etc/machine-id
depmod "$release"

# The real grub-probe finds no disk below an unbooted tree.
: "${probe:=/usr/sbin/grub-probe}"
stand_in_for_grub_probe() {
    mv "$probe" /bake/grub-probe.real
    cp /bake/grub-probe "$probe"
    chmod 0755 "$probe"
    mkdir -p /dev/disk/by-uuid
    touch "/dev/disk/by-uuid/$ROOT_UUID"
}

real_grub_probe() {
    mv /bake/grub-probe.real "$probe"
}

finish() {
    find /var/log -type f -delete
    # systemd rebuilds caches when /usr is younger than these.
    touch /etc/.updated /var/.updated
}
