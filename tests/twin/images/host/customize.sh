#!/bin/sh
# Runs inside the tree of the emulated server's image, with /proc, /sys and /dev there. Arguments: kernel release.
# Environment: ROOT_DEVICE, ROOT_UUID, ROOT_PARTUUID. /bake holds what common.sh names; it is removed afterwards.
set -eu
release=$1

. /bake/common.sh

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
stand_in_for_grub_probe
update-grub
real_grub_probe

apt-get -o Dir::Etc::sourceparts=/dev/null update
dpkg-query -W -f '${Package} ${Version}\n' >/bake/packages
finish
rm -rf /var/cache/debconf/*-old /var/lib/dpkg/*-old /var/cache/apt/*.bin
