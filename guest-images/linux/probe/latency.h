/* SPDX-License-Identifier: MIT */
/*
 * The guest's half of bench/latency.py: has the driver time exchanges with the
 * host, and prints what came out.
 *
 *	vmbus-probe latency DEVICE PACKETS GAP_PACKETS GAP_US GPADLS
 *
 * opens the channel of DEVICE and waits for lines on standard input. For each
 * it times PACKETS packets back to back, GAP_PACKETS with GAP_US microseconds
 * of sleep before each, and GPADLS GPADLs, and prints a line for each of
 *
 *	latency busy|idle|create|teardown n=N min=NS median=NS p90=NS p99=NS max=NS
 *
 * and "latency done"; the end of the input ends it. On a data channel of the
 * probe the packet is G_ECHO. On a channel of another class, which must be
 * QEMU's hv-balloon, it is a request for a version of the dynamic memory
 * protocol that does not exist: the device refuses each in the same way.
 */
#ifndef PROBE_LATENCY_H
#define PROBE_LATENCY_H

int latency_main(int argc, char **argv);

#endif
