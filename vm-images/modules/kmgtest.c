// SPDX-License-Identifier: GPL-2.0-only
/*
 * The smallest module that is worth a verdict: no hardware, no dependency, a version,
 * a parameter, an exported symbol for kmgneeds.
 */
#include <linux/init.h>
#include <linux/kernel.h>
#include <linux/module.h>

static int answer = 42;
module_param(answer, int, 0444);
MODULE_PARM_DESC(answer, "the number that kmgtest_answer() returns");

int kmgtest_answer(void); /* kmgneeds declares it too: two users make no header */

int kmgtest_answer(void)
{
	return answer;
}
EXPORT_SYMBOL_GPL(kmgtest_answer);

static int __init kmgtest_init(void)
{
	pr_info("kmgtest: loaded, answer %d\n", answer);
	return 0;
}

static void __exit kmgtest_exit(void)
{
	pr_info("kmgtest: unloaded\n");
}

module_init(kmgtest_init);
module_exit(kmgtest_exit);

MODULE_DESCRIPTION("kmodgate test module");
MODULE_AUTHOR("kmodgate");
MODULE_VERSION("1.0");
MODULE_LICENSE("GPL");
