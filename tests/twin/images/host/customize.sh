#!/bin/sh
# Runs inside the tree of the emulated server's image, with /proc, /sys and /dev there. Arguments: kernel release.
# Environment: ROOT_UUID, ROOT_PARTUUID. /bake holds grub-probe, masked-*.txt and key.pub; it is removed afterwards.
set -eu
release=$1

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
if [ -e "/boot/initrd.img-$release" ]; then
    update-initramfs -u -k "$release"
else
    update-initramfs -c -k "$release"
fi

# The boot loader, as grub-install --removable --no-nvram makes it.
install -d /boot/efi /boot/grub/x86_64-efi
cp /usr/lib/grub/x86_64-efi/*.mod /usr/lib/grub/x86_64-efi/*.lst /boot/grub/x86_64-efi/
printf 'search.fs_uuid %s root\nset prefix=($root)/boot/grub\n' "$ROOT_UUID" >/bake/early.cfg
grub-mkimage -O x86_64-efi -p /boot/grub -c /bake/early.cfg -o /bake/BOOTX64.EFI part_gpt fat ext2 search_fs_uuid
grub-editenv /boot/grub/grubenv create
mv /usr/sbin/grub-probe /bake/grub-probe.real
cp /bake/grub-probe /usr/sbin/grub-probe
chmod 0755 /usr/sbin/grub-probe
mkdir -p /dev/disk/by-uuid
touch "/dev/disk/by-uuid/$ROOT_UUID"
update-grub
mv /bake/grub-probe.real /usr/sbin/grub-probe

apt-get -o Dir::Etc::sourceparts=/dev/null update
dpkg-query -W -f '${Package} ${Version}\n' >/bake/packages
find /var/log -type f -delete
# systemd rebuilds caches when /usr is younger than these.
touch /etc/.updated /var/.updated
rm -rf /var/cache/debconf/*-old /var/lib/dpkg/*-old /var/cache/apt/*.bin
