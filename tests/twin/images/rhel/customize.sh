#!/bin/bash
# Runs inside the tree of a RHEL-shaped image, with /proc, /sys and /dev there. Arguments: kernel release.
# Environment: ROOT_DEVICE, ROOT_UUID, ROOT_PARTUUID, GRUB_MODULES. /bake holds what common.sh names, early.cfg,
# entry.conf, grub-modules and preinstalled; it is removed afterwards. /mnt holds all.spec and payload.
set -eu
release=$1
probe=/usr/libexec/grub/grub-probe

. /bake/common.sh

# Names as on RHEL.
systemctl --quiet disable ssh.service
mv /usr/lib/systemd/system/ssh.service /usr/lib/systemd/system/sshd.service
sed -i '/^Alias=/d' /usr/lib/systemd/system/sshd.service
rm -f /usr/lib/systemd/system/ssh.socket
systemctl --quiet enable sshd.service
systemctl --quiet mask dnf-makecache.timer

# Packages: their Python is compiled now, as it is in real ones, so that running it leaves nothing behind.
for python in /mnt/payload/usr/lib/python3*; do
    program=/usr/bin/${python##*/}
    [ "$program" != /usr/bin/python3 ] || program=/usr/libexec/platform-python
    "$program" -m compileall -q --invalidation-mode unchecked-hash -s /mnt/payload -p / "$python"
done
if [ -d /usr/lib/python3.9 ]; then
    /usr/bin/python3.9 -m compileall -q --invalidation-mode unchecked-hash /usr/lib/python3.9 || :
fi
rpmbuild -bb --define '_topdir /mnt/build' --define '_rpmdir /mnt/rpms' /mnt/all.spec
mkdir -p /srv/repo
cp /mnt/rpms/*/*.rpm /srv/repo
createrepo_c --quiet /srv/repo
# rpm keeps its scripts from changing mounts, which needs a root that is a mount.
install -d /etc/rpm
echo '%__transaction_unshare %{nil}' >/etc/rpm/macros.bake
# dnf reads the release from the first one.
rpm -i /srv/repo/redhat-release-*.rpm
# shellcheck disable=SC2046
dnf --assumeyes --quiet install $(cat /bake/preinstalled)
rm /etc/rpm/macros.bake
if [ -d /etc/tuned ]; then
    echo throughput-performance >/etc/tuned/active_profile
    # Left to itself TuneD sees a virtual machine and takes a guest's profile.
    echo manual >/etc/tuned/profile_mode
fi

# The boot loader and the only entry.
rm -rf /boot/initrd.img* /boot/grub /boot/vmlinuz /vmlinuz* /initrd.img*
install -d /boot/efi /boot/grub2 /boot/loader/entries
dracut --force --kver "$release"
test -s "/boot/initramfs-$release.img"
install -d /usr/libexec/grub
for folder in /usr/bin /usr/sbin; do
    for tool in "$folder"/grub-*; do
        name=${tool##*/grub-}
        mv "$tool" "/usr/libexec/grub/grub-$name"
        ln -s "/usr/libexec/grub/grub-$name" "$folder/grub2-$name"
    done
done
rm -f /usr/sbin/update-grub /usr/sbin/update-grub2
for script in /usr/libexec/grub/* /usr/share/grub/*; do
    if [ -f "$script" ] && head -c 2 "$script" | grep -q '#!' || [ "${script##*/}" = grub-mkconfig_lib ]; then
        sed -i -E 's,/usr/s?bin/grub-,/usr/libexec/grub/grub-,g; s,\$\{s?bindir\}/grub-,/usr/libexec/grub/grub-,g' "$script"
    fi
done
# GRUB's tools have this folder's name compiled in.
ln -s grub2 /boot/grub
ln -s ../boot/grub2/grub.cfg /etc/grub2.cfg
ln -s ../boot/grub2/grub.cfg /etc/grub2-efi.cfg
id=$(cat /etc/machine-id)-$release
cp /bake/entry.conf "/boot/loader/entries/$id.conf"
grub2-editenv /boot/grub2/grubenv create
grub2-editenv /boot/grub2/grubenv set "saved_entry=$id"
stand_in_for_grub_probe
grub2-mkconfig -o /boot/grub2/grub.cfg
real_grub_probe
# shellcheck disable=SC2086
grub2-mkimage -O x86_64-efi -d /bake/grub-modules -p /grub2 -c /bake/early.cfg -o /bake/grubx64.efi $GRUB_MODULES

finish
# From here on rpm is the only package manager.
rm -rf /etc/apt /etc/dpkg /etc/debconf.conf /etc/kernel/post* /etc/kernel/pre* /usr/lib/apt /usr/lib/dpkg \
    /usr/share/dpkg /usr/share/debconf /usr/libexec/dpkg /var/lib/apt /var/lib/dpkg /var/cache/apt /var/cache/debconf \
    /usr/bin/apt* /usr/bin/dpkg* /usr/bin/debconf* /usr/sbin/dpkg* /usr/bin/deb-systemd-* /usr/sbin/update-rc.d \
    /usr/sbin/invoke-rc.d /usr/bin/rpmbuild /usr/bin/createrepo_c /usr/sbin/update-initramfs
rm -rf /root/rpmbuild /var/cache/dnf/*.lock
