/*
 * Asks stock xl and libxlutil what they make of a text. A library that is preloaded into xl: it takes main()
 * over, answers questions on stdin, and stands for the hypervisor (8 CPUs, 4 on each of 2 nodes) and the store
 * below libxl, so that neither is needed. A test helper: nothing of it is linked into a program of ours.
 *
 * A question: a byte for its kind, a u32 for the number of texts, each text with a u32 length before it.
 * An answer: an i32 status, and a text with a u32 length before it. Numbers are little-endian.
 *   c  TEXT KEY...  xlu_cfg_readdata; then each key's value as absent `-`, string `S<len>:<bytes><long>;` or
 *                   list `L<count>:<values>`
 *   d  TEXT         xlu_disk_parse; then what it found, a line each
 *   v  NAME         the number of a virtual disk
 *   r  TEXT         xlu_vif_parse_rate; then bytes and microseconds
 *   x  ARG...       xl itself, with these arguments; status and stdout are its
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>
#include <libxl_utils.h>
#include <libxlutil.h>
#include <xenctrl.h>

enum { CPUS = 8, NODES = 2, MAX_TEXTS = 64, MAX_TEXT = 1 << 20 };

/* What libxl finds below it */

xc_interface *xc_interface_open(xentoollog_logger *log, xentoollog_logger *dom, unsigned flags)
{
	static xc_interface *(*real)(xentoollog_logger *, xentoollog_logger *, unsigned);
	if (!real)
		real = dlsym(RTLD_NEXT, "xc_interface_open");
	return real(log, dom, flags | XC_OPENFLAG_DUMMY);
}

int xc_get_max_cpus(xc_interface *xch)
{
	return CPUS;
}

int xc_get_max_nodes(xc_interface *xch)
{
	return NODES;
}

int xc_cputopoinfo(xc_interface *xch, unsigned *count, xen_sysctl_cputopo_t *out)
{
	if (!out) {
		*count = CPUS;
		return 0;
	}
	for (unsigned i = 0; i < *count && i < CPUS; i++) {
		out[i].core = i;
		out[i].socket = i / (CPUS / NODES);
		out[i].node = i / (CPUS / NODES);
	}
	return 0;
}

int xc_numainfo(xc_interface *xch, unsigned *count, xen_sysctl_meminfo_t *out, uint32_t *distance)
{
	if (!out) {
		*count = NODES;
		return 0;
	}
	memset(out, 0, *count * sizeof *out);
	for (unsigned i = 0; distance && i < *count * *count; i++)
		distance[i] = 10;
	return 0;
}

int xc_version(xc_interface *xch, int what, void *out)
{
	return -1;
}

int libxl_get_physinfo(libxl_ctx *ctx, libxl_physinfo *out)
{
	out->nr_cpus = CPUS;
	out->cap_pv = true;
	return 0;
}

struct xs_handle;

struct xs_handle *xs_open(unsigned long flags)
{
	static char store;
	return (struct xs_handle *)&store;
}

void xs_close(struct xs_handle *h)
{
}

static char asked[256];

void *xs_read(struct xs_handle *h, uint32_t transaction, const char *path, unsigned *len)
{
	strncpy(asked, path, sizeof asked - 1);
	errno = ENOENT;
	return NULL;
}

/* Questions and answers */

static void whole(int write_it, int fd, void *at, size_t len)
{
	while (len) {
		ssize_t n = write_it ? write(fd, at, len) : read(fd, at, len);
		if (n < 0 && errno == EINTR)
			continue;
		if (n <= 0)
			_exit(n < 0 ? 99 : 0);
		at = (char *)at + n;
		len -= n;
	}
}

static int questions, answers;

static void answer(int32_t status, void *text, uint32_t len)
{
	whole(1, answers, &status, sizeof status);
	whole(1, answers, &len, sizeof len);
	whole(1, answers, text, len);
}

static void show(FILE *out, const XLU_Config *cfg, XLU_ConfigValue *value)
{
	XLU_ConfigList *list;
	char *text;
	if (xlu_cfg_value_type(value) == XLU_LIST) {
		int count = 0;
		xlu_cfg_value_get_list(cfg, value, &list, 1);
		while (xlu_cfg_get_listitem2(list, count))
			count++;
		fprintf(out, "L%d:", count);
		for (int i = 0; i < count; i++)
			show(out, cfg, xlu_cfg_get_listitem2(list, i));
	} else {
		xlu_cfg_value_get_string(cfg, value, &text, 1);
		fprintf(out, "S%zu:%s;", strlen(text), text);
	}
}

static void config(char **texts, uint32_t *lens, uint32_t count, FILE *out, FILE *nowhere, int32_t *status)
{
	XLU_Config *cfg = xlu_cfg_init(nowhere, "t");
	*status = xlu_cfg_readdata(cfg, texts[0], lens[0]);
	for (uint32_t i = 1; !*status && i < count; i++) {
		const char *text;
		XLU_ConfigList *list;
		int entries;
		long number;
		if (!xlu_cfg_get_list(cfg, texts[i], &list, &entries, 1)) {
			fprintf(out, "L%d:", entries);
			for (int k = 0; k < entries; k++)
				show(out, cfg, xlu_cfg_get_listitem2(list, k));
		} else if (!xlu_cfg_get_string(cfg, texts[i], &text, 1)) {
			fprintf(out, "S%zu:%s", strlen(text), text);
			if (xlu_cfg_get_long(cfg, texts[i], &number, 1))
				fprintf(out, "E;");
			else
				fprintf(out, "%ld;", number);
		} else {
			fprintf(out, "-");
		}
	}
	xlu_cfg_destroy(cfg);
}

static void disk(char *text, FILE *out, FILE *nowhere, int32_t *status)
{
	const char *specs[] = { text };
	XLU_Config *cfg = xlu_cfg_init(nowhere, "t");
	libxl_device_disk disk;
	libxl_device_disk_init(&disk);
	*status = xlu_disk_parse(cfg, 1, specs, &disk);
	if (!*status) {
		const char *const texts[] = { disk.pdev_path, disk.vdev, disk.script, disk.backend_domname };
		const char *const names[] = { "target", "vdev", "script", "backend" };
		for (int i = 0; i < 4; i++)
			if (texts[i])
				fprintf(out, "%s=%s\n", names[i], texts[i]);
		fprintf(out, "format=%s\nbackendtype=%s\n", libxl_disk_format_to_string(disk.format),
			libxl_disk_backend_to_string(disk.backend));
		fprintf(out, "readwrite=%d\ncdrom=%d\ndirect=%d\n", disk.readwrite, disk.is_cdrom, disk.direct_io_safe);
		fprintf(out, "discard=%s\ntrusted=%s\n", libxl_defbool_to_string(disk.discard_enable),
			libxl_defbool_to_string(disk.trusted));
	}
	libxl_device_disk_dispose(&disk);
	xlu_cfg_destroy(cfg);
}

static void rate(char *text, FILE *out, FILE *nowhere, int32_t *status)
{
	XLU_Config *cfg = xlu_cfg_init(nowhere, "t");
	libxl_device_nic nic;
	libxl_device_nic_init(&nic);
	*status = xlu_vif_parse_rate(cfg, text, &nic);
	fprintf(out, "%llu,%u", (unsigned long long)nic.rate_bytes_per_interval, nic.rate_interval_usecs);
	xlu_cfg_destroy(cfg);
}

static void vdev(libxl_ctx *ctx, char *name, FILE *out, int32_t *status)
{
	libxl_device_disk disk;
	libxl_device_disk_init(&disk);
	asked[0] = 0;
	libxl_vdev_to_device_disk(ctx, 1, name, &disk);
	*status = !asked[0];
	fputs(asked, out);
	libxl_device_disk_dispose(&disk);
}

static int (*xl_main)(int, char **, char **);

static int32_t xl(char **texts, uint32_t count, char **env, int fd)
{
	int status;
	pid_t child = fork();
	if (!child) {
		char *args[MAX_TEXTS + 2] = { "xl" };
		memcpy(args + 1, texts, count * sizeof *texts);
		alarm(10);
		dup2(fd, STDOUT_FILENO);
		dup2(STDIN_FILENO, STDERR_FILENO);
		exit(xl_main(count + 1, args, env));
	}
	waitpid(child, &status, 0);
	return WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
}

static int serve(int argc, char **argv, char **env)
{
	static char room[MAX_TEXTS][MAX_TEXT + 1];
	char *texts[MAX_TEXTS];
	uint32_t lens[MAX_TEXTS], count;
	FILE *nowhere = fopen("/dev/null", "r+");
	xentoollog_logger *log = (xentoollog_logger *)xtl_createlogger_stdiostream(nowhere, XTL_CRITICAL, 0);
	libxl_ctx *ctx;
	int fd = memfd_create("out", 0);
	questions = dup(STDIN_FILENO);
	answers = dup(STDOUT_FILENO);
	dup2(fileno(nowhere), STDIN_FILENO);
	dup2(fileno(nowhere), STDOUT_FILENO);
	if (libxl_ctx_alloc(&ctx, LIBXL_VERSION, 0, log))
		return 98;
	for (;;) {
		char kind, *text;
		size_t len;
		int32_t status = 0;
		whole(0, questions, &kind, 1);
		whole(0, questions, &count, sizeof count);
		if (count > MAX_TEXTS)
			return 97;
		for (uint32_t i = 0; i < count; i++) {
			whole(0, questions, &lens[i], sizeof lens[i]);
			if (lens[i] > MAX_TEXT)
				return 97;
			whole(0, questions, texts[i] = room[i], lens[i]);
			texts[i][lens[i]] = 0;
		}
		if (kind == 'x') {
			if (ftruncate(fd, 0) || lseek(fd, 0, SEEK_SET))
				return 96;
			status = xl(texts, count, env, fd);
			len = lseek(fd, 0, SEEK_END);
			text = len ? mmap(NULL, len, PROT_READ, MAP_SHARED, fd, 0) : "";
			answer(status, text, len);
			if (len)
				munmap(text, len);
			continue;
		}
		FILE *out = open_memstream(&text, &len);
		if (kind == 'c')
			config(texts, lens, count, out, nowhere, &status);
		else if (kind == 'd')
			disk(texts[0], out, nowhere, &status);
		else if (kind == 'r')
			rate(texts[0], out, nowhere, &status);
		else if (kind == 'v')
			vdev(ctx, texts[0], out, &status);
		fclose(out);
		answer(status, text, len);
		free(text);
	}
}

/* In the place of libc's: xl's main is kept, ours is run. */
int __libc_start_main(int (*program)(int, char **, char **), int argc, char **argv, void (*init)(void),
		      void (*fini)(void), void (*loader)(void), void *stack)
{
	typeof(&__libc_start_main) real = dlsym(RTLD_NEXT, "__libc_start_main");
	xl_main = program;
	return real(serve, argc, argv, init, fini, loader, stack);
}
