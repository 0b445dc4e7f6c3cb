// SPDX-License-Identifier: GPL-2.0-only
/* Passes every check and then fails by itself: a refused init is not a verdict. */
#include <linux/errno.h>
#include <linux/init.h>
#include <linux/module.h>

static int __init kmgfail_init(void)
{
	return -ENODEV;
}

module_init(kmgfail_init);

MODULE_DESCRIPTION("kmodgate test module whose init fails with ENODEV");
MODULE_AUTHOR("kmodgate");
MODULE_VERSION("1.0");
MODULE_LICENSE("GPL");
