// SPDX-License-Identifier: GPL-2.0-only
/* Needs kmgtest: a load of this one through modprobe is two loads. */
#include <linux/init.h>
#include <linux/module.h>

int kmgtest_answer(void);

static int __init kmgneeds_init(void)
{
	pr_info("kmgneeds: loaded, kmgtest answers %d\n", kmgtest_answer());
	return 0;
}

static void __exit kmgneeds_exit(void)
{
}

module_init(kmgneeds_init);
module_exit(kmgneeds_exit);

MODULE_DESCRIPTION("kmodgate test module that needs another");
MODULE_AUTHOR("kmodgate");
MODULE_VERSION("1.0");
MODULE_LICENSE("GPL");
