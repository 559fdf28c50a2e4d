// SPDX-License-Identifier: GPL-3.0-or-later
/*
 * A stand-in for a device's native driver on the emulated server. It claims the emulated PCI functions under the real
 * driver's name and does nothing else, so that binding, unbinding and the order of drivers at boot are real.
 * Built once per driver: STANDIN_NAME is its name, STANDIN_IDS its table of PCI ids.
 */
#include <linux/module.h>
#include <linux/pci.h>

static const struct pci_device_id standin_ids[] = {
	STANDIN_IDS,
	{ }
};
MODULE_DEVICE_TABLE(pci, standin_ids);

static int standin_probe(struct pci_dev *device, const struct pci_device_id *id)
{
	int error = pcim_enable_device(device);

	if (error)
		return error;
	pci_set_master(device);
	pci_info(device, "claimed by the stand-in driver " STANDIN_NAME "\n");
	return 0;
}

static void standin_remove(struct pci_dev *device)
{
	pci_clear_master(device);
	pci_info(device, "released by the stand-in driver " STANDIN_NAME "\n");
}

static struct pci_driver standin_driver = {
	.name = STANDIN_NAME,
	.id_table = standin_ids,
	.probe = standin_probe,
	.remove = standin_remove,
};
module_pci_driver(standin_driver);

MODULE_DESCRIPTION("stand-in for the driver " STANDIN_NAME " (emulated server only)");
MODULE_AUTHOR("the topovirt.kvm authors");
MODULE_VERSION("stand-in");
/* The kernel knows the versions of the GPL by this name only. */
MODULE_LICENSE("GPL");
