/*
 * Xen's libraries as files: loaded before libxenctrl, libxenevtchn and libxengnttab, so that the stock store daemons
 * of Xen 4.17 run on any machine against a folder that the crate fakexen describes. $FAKEXEN names the folder.
 *
 * Only what those two daemons call is here, with the layouts of 4.17 as far as the daemons read them. No header of
 * Xen is needed, and no symbol of libc that is younger than the daemons' own.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/un.h>
#include <unistd.h>

#define PAGE 4096
#define RECEIVE_BUFFER (4 << 20)

/* Ports of the daemon. */
enum { VIRQ_PORT = 1, FIRST_DOMAIN = 16 };

/* A path, in a buffer of the caller's. */
struct path { char text[sizeof(((struct sockaddr_un *)0)->sun_path)]; };

static const char *folder(void)
{
	static const char *known;
	if (!known && !(known = getenv("FAKEXEN"))) {
		static const char words[] = "preload: FAKEXEN is not set\n";
		(void)!write(2, words, sizeof words - 1);
		_exit(1);
	}
	return known;
}

/* Too long a path is cut, and then not found. */
static void append(struct path *path, const char *more)
{
	size_t have = strlen(path->text), len = strlen(more);
	size_t room = sizeof path->text - 1 - have;
	if (len > room)
		len = room;
	memcpy(path->text + have, more, len);
	path->text[have + len] = 0;
}

/* folder / before [number] after */
static const char *in_folder(struct path *path, const char *before, long number, const char *after)
{
	path->text[0] = 0;
	append(path, folder());
	append(path, "/");
	append(path, before);
	if (number >= 0) {
		char digits[24];
		char *at = digits + sizeof digits - 1;
		*at = 0;
		do
			*--at = '0' + number % 10;
		while (number /= 10);
		append(path, at);
	}
	append(path, after);
	return path->text;
}

/* What the daemons have compiled in, moved into the folder. */
static const char *moved(struct path *path, const char *name)
{
	static const char *const tops[] = { "/var/run/xenstored", "/run/xenstored", "/var/lib/xenstored", "/var/run/xen", "/var/log/xen" };
	if (!strcmp(name, "/proc/xen/xsd_kva"))
		return in_folder(path, "ring.0", -1, "");
	if (!strcmp(name, "/proc/xen/xsd_port"))
		return in_folder(path, "port.0", -1, "");
	for (size_t i = 0; i < sizeof tops / sizeof *tops; i++) {
		size_t len = strlen(tops[i]);
		if (!strncmp(name, tops[i], len) && (name[len] == '/' || !name[len]))
			return in_folder(path, strrchr(tops[i], '/') + 1, -1, name + len);
	}
	return name;
}

/* libc, where it names files */

static int open_moved(const char *name, int flags, int mode)
{
	struct path path;
	return syscall(SYS_openat, AT_FDCWD, moved(&path, name), flags, mode);
}

int open(const char *name, int flags, ...)
{
	va_list more;
	va_start(more, flags);
	int mode = flags & (O_CREAT | O_TMPFILE) ? va_arg(more, int) : 0;
	va_end(more);
	return open_moved(name, flags, mode);
}

int open64(const char *name, int flags, ...)
{
	va_list more;
	va_start(more, flags);
	int mode = flags & (O_CREAT | O_TMPFILE) ? va_arg(more, int) : 0;
	va_end(more);
	return open_moved(name, flags, mode);
}

int unlink(const char *name)
{
	struct path path;
	return syscall(SYS_unlink, moved(&path, name));
}

int mkdir(const char *name, mode_t mode)
{
	struct path path;
	return syscall(SYS_mkdir, moved(&path, name), mode);
}

int chmod(const char *name, mode_t mode)
{
	struct path path;
	return syscall(SYS_chmod, moved(&path, name), mode);
}

int access(const char *name, int mode)
{
	struct path path;
	return syscall(SYS_access, moved(&path, name), mode);
}

/* Both structures are the kernel's on this machine. */
int stat(const char *name, void *to)
{
	struct path path;
	return syscall(SYS_newfstatat, AT_FDCWD, moved(&path, name), to, 0);
}

int stat64(const char *name, void *to)
{
	struct path path;
	return syscall(SYS_newfstatat, AT_FDCWD, moved(&path, name), to, 0);
}

int bind(int fd, const struct sockaddr *address, socklen_t len)
{
	if (address->sa_family == AF_UNIX) {
		const char *name = ((const struct sockaddr_un *)address)->sun_path;
		struct path path;
		const char *there = moved(&path, name);
		if (there != name) {
			struct sockaddr_un other = { .sun_family = AF_UNIX };
			strcpy(other.sun_path, there);
			return syscall(SYS_bind, fd, &other, sizeof other);
		}
	}
	return syscall(SYS_bind, fd, address, len);
}

/* The limits are the caller's: a daemon that sets its own may not be allowed to. */
int setrlimit(int what, const void *limit) { (void)what; (void)limit; return 0; }
int setrlimit64(int what, const void *limit) { (void)what; (void)limit; return 0; }

/* libxenctrl */

enum state { ABSENT, RUNNING, SHUTDOWN, DYING };

static enum state state(uint32_t dom)
{
	struct path path;
	char text[16] = "";
	if (!dom)
		return RUNNING;
	int fd = syscall(SYS_openat, AT_FDCWD, in_folder(&path, "dom.", dom, ""), O_RDONLY | O_CLOEXEC, 0);
	if (fd < 0)
		return ABSENT;
	ssize_t len = read(fd, text, sizeof text - 1);
	close(fd);
	if (len > 0 && !strncmp(text, "dying", 5))
		return DYING;
	return len > 0 && !strncmp(text, "shutdown", 8) ? SHUTDOWN : RUNNING;
}

void *xc_interface_open(void *logger, void *other, unsigned flags)
{
	(void)logger; (void)other; (void)flags;
	return calloc(1, PAGE);
}

int xc_interface_close(void *xc) { free(xc); return 0; }

/* xc_error: a number and 1024 characters. */
const void *xc_get_last_error(void *xc)
{
	static const struct { int code; char message[1024]; } none;
	(void)xc;
	return &none;
}

const char *xc_error_code_to_desc(int code) { (void)code; return "no such thing without Xen"; }

/* xc_dominfo_t: 112 bytes; domid, ssidref, then bits, of which 0 is dying and 2 shutdown. */
int xc_domain_getinfo(void *xc, uint32_t first, unsigned most, void *infos)
{
	uint32_t *info = infos;
	enum state now = state(first);
	(void)xc; (void)most;
	if (now == ABSENT) {
		errno = ESRCH;
		return -1;
	}
	memset(info, 0, 112);
	info[0] = first;
	info[2] = now == DYING ? 5 : now == SHUTDOWN ? 4 : 0;
	return 1;
}

/* xc_domaininfo_t: 112 bytes; u16 domid, then at 4 the flags, of which 0 is dying and 2 shutdown. */
int xc_domain_getinfolist(void *xc, uint32_t first, unsigned most, void *infos)
{
	uint32_t *info = infos;
	enum state now = state(first);
	(void)xc; (void)most;
	if (now == ABSENT)
		return 0;
	memset(info, 0, 112);
	*(uint16_t *)info = first;
	info[1] = now == DYING ? 5 : now == SHUTDOWN ? 4 : 0;
	return 1;
}

static void *map_ring(uint32_t dom)
{
	struct path path;
	int fd = syscall(SYS_openat, AT_FDCWD, in_folder(&path, "ring.", dom, ""), O_RDWR | O_CLOEXEC, 0);
	if (fd < 0)
		return NULL;
	void *page = mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	close(fd);
	return page == MAP_FAILED ? NULL : page;
}

void *xc_map_foreign_range(void *xc, uint32_t dom, int size, int prot, unsigned long frame)
{
	(void)xc; (void)size; (void)prot; (void)frame;
	return map_ring(dom);
}

/* libxengnttab: the one grant that is mapped is the ring's. */

void *xengnttab_open(void *logger, unsigned flags) { (void)logger; (void)flags; return calloc(1, 64); }
int xengnttab_close(void *gnttab) { free(gnttab); return 0; }
int xengnttab_set_max_grants(void *gnttab, uint32_t count) { (void)gnttab; (void)count; return 0; }

void *xengnttab_map_grant_ref(void *gnttab, uint32_t dom, uint32_t grant, int prot)
{
	(void)gnttab; (void)grant; (void)prot;
	return map_ring(dom);
}

int xengnttab_unmap(void *gnttab, void *page, uint32_t count) { (void)gnttab; return munmap(page, count * PAGE); }

/* libxenevtchn: there is one handle in a daemon. */

static int events = -1;

void *xenevtchn_open(void *logger, unsigned flags)
{
	struct path path;
	struct sockaddr_un address = { .sun_family = AF_UNIX };
	int room = RECEIVE_BUFFER;
	(void)logger; (void)flags;
	strcpy(address.sun_path, in_folder(&path, "evtchn.sock", -1, ""));
	syscall(SYS_unlink, address.sun_path);
	/* Inherited by the daemon that takes over in a live update. */
	events = socket(AF_UNIX, SOCK_DGRAM, 0);
	setsockopt(events, SOL_SOCKET, SO_RCVBUF, &room, sizeof room);
	if (events < 0 || syscall(SYS_bind, events, &address, sizeof address))
		return NULL;
	return calloc(1, 64);
}

void *xenevtchn_fdopen(void *logger, int fd, unsigned flags)
{
	(void)logger; (void)flags;
	events = fd;
	return calloc(1, 64);
}

int xenevtchn_close(void *evtchn) { free(evtchn); return 0; }
int xenevtchn_fd(void *evtchn) { (void)evtchn; return events; }
int xenevtchn_bind_interdomain(void *evtchn, uint32_t dom, uint32_t port) { (void)evtchn; (void)port; return FIRST_DOMAIN + dom; }
int xenevtchn_bind_virq(void *evtchn, unsigned virq) { (void)evtchn; (void)virq; return VIRQ_PORT; }
int xenevtchn_bind(void *evtchn, uint32_t port) { (void)evtchn; (void)port; return 0; }
int xenevtchn_unbind(void *evtchn, uint32_t port) { (void)evtchn; (void)port; return 0; }
int xenevtchn_unmask(void *evtchn, uint32_t port) { (void)evtchn; (void)port; return 0; }

int xenevtchn_notify(void *evtchn, uint32_t port)
{
	static int sender = -1;
	struct path path;
	struct sockaddr_un address = { .sun_family = AF_UNIX };
	(void)evtchn;
	if (sender < 0)
		sender = socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0);
	strcpy(address.sun_path, in_folder(&path, "guest.", (long)port - FIRST_DOMAIN, ".sock"));
	/* No guest, or one that is woken already. */
	sendto(sender, "\1", 1, MSG_DONTWAIT | MSG_NOSIGNAL, (void *)&address, sizeof address);
	return 0;
}

int xenevtchn_pending(void *evtchn)
{
	uint32_t port;
	(void)evtchn;
	return recv(events, &port, sizeof port, 0) == sizeof port ? (int)port : -1;
}
