'use strict';
// The example worker: a small HTTP server that says who it is and can be told to be slow or to fail.
//
//   GET  /               {"worker","host","pid","requests"}: who answers
//   GET  /headers        the same, and the request as it arrived
//   GET  /slow?ms=500    answers late
//   GET  /fail?status=503  answers with that status
//   GET  /block?ms=200   keeps the event loop busy, as a long computation does
//   ANY  /echo           the request's body, streamed back
//   GET  /healthz        200; 503 while told to be unhealthy
//   GET  /metrics        Prometheus
//   POST /control        {"delayMs":0,"failRate":0.5,"status":503,"resetRate":0.1,"healthy":true}: from now on, for
//                        all but /control, /healthz and /metrics; {} puts everything back
//   a WebSocket on any path: echoes messages
//
// PORT (8080) is the port, WORKER_NAME the name it answers with.
// Every answer carries the event loop's lag in the ORCA header, which a balancer may act upon.

const crypto = require('node:crypto');
const http = require('node:http');
const os = require('node:os');
const { monitorEventLoopDelay, performance } = require('node:perf_hooks');

const port = Number(process.env.PORT ?? 8080);
const worker = process.env.WORKER_NAME ?? `${os.hostname()}:${port}`;

const wellBehaved = { delayMs: 0, failRate: 0, status: 503, resetRate: 0, healthy: true };
let control = { ...wellBehaved };
let requests = 0;
let inFlight = 0;
const answers = new Map(); // status -> count

const bearableLagMs = 50;
const resolution = 10; // ms: the histogram counts from here, so it is taken off
const delay = monitorEventLoopDelay({ resolution });
delay.enable();
let lagMs = 0;
let utilization = 0;
let lastUtilization = performance.eventLoopUtilization();
setInterval(() => {
  lagMs = Number.isNaN(delay.mean) ? 0 : Math.max(0, delay.mean / 1e6 - resolution);
  delay.reset();
  const now = performance.eventLoopUtilization();
  utilization = performance.eventLoopUtilization(now, lastUtilization).utilization;
  lastUtilization = now;
}, 500).unref();

function loadMetrics() {
  const lag = { event_loop_lag_ms: round(lagMs), event_loop: round(lagMs / bearableLagMs) }; // 1 is full
  const report = { cpu_utilization: round(utilization), named_metrics: lag };
  return `JSON ${JSON.stringify(report)}`;
}

function round(number) {
  return Math.round(number * 1000) / 1000;
}

function sendJson(response, status, value) {
  const body = `${JSON.stringify(value)}\n`;
  response.writeHead(status, { 'content-type': 'application/json', 'content-length': Buffer.byteLength(body) });
  response.end(body); // which Node leaves out for HEAD
}

const whoAmI = () => ({ worker, host: os.hostname(), pid: process.pid, requests });

function number(text, fallback, least, most) {
  const value = Number(text ?? fallback);
  return Number.isFinite(value) ? Math.min(Math.max(value, least), most) : fallback;
}

function metrics() {
  const lines = [
    '# HELP worker_requests_total Answers, by status.',
    '# TYPE worker_requests_total counter',
    ...[...answers].map(([status, count]) => `worker_requests_total{worker="${worker}",status="${status}"} ${count}`),
    '# HELP worker_requests_in_flight Requests being answered.',
    '# TYPE worker_requests_in_flight gauge',
    `worker_requests_in_flight{worker="${worker}"} ${inFlight}`,
    '# HELP worker_event_loop_lag_seconds Mean lag of the event loop over the last half second.',
    '# TYPE worker_event_loop_lag_seconds gauge',
    `worker_event_loop_lag_seconds{worker="${worker}"} ${lagMs / 1000}`,
    '# HELP worker_event_loop_utilization Share of the last half second that the event loop was busy.',
    '# TYPE worker_event_loop_utilization gauge',
    `worker_event_loop_utilization{worker="${worker}"} ${utilization}`,
  ];
  return `${lines.join('\n')}\n`;
}

// What runs while the worker is told to misbehave, too.
const management = {
  '/healthz': (incoming, response) => sendJson(response, control.healthy ? 200 : 503, { healthy: control.healthy }),
  '/metrics': (incoming, response) => {
    response.writeHead(200, { 'content-type': 'text/plain; version=0.0.4; charset=utf-8' });
    response.end(metrics());
  },
  '/control': async (incoming, response) => {
    if (incoming.method === 'POST') {
      try {
        control = readControl(JSON.parse(await readBody(incoming, 4096)));
      } catch (error) {
        return sendJson(response, 400, { error: error.message });
      }
    }
    sendJson(response, 200, { worker, ...control });
  },
};

const pages = {
  '/headers': (incoming, response) =>
    sendJson(response, 200, {
      ...whoAmI(),
      method: incoming.method,
      url: incoming.url,
      httpVersion: incoming.httpVersion,
      headers: incoming.headers,
    }),
  '/slow': (incoming, response, query) => {
    const ms = number(query.get('ms'), 1000, 0, 600_000);
    const timer = setTimeout(() => sendJson(response, 200, { ...whoAmI(), sleptMs: ms }), ms);
    response.on('close', () => clearTimeout(timer));
  },
  '/fail': (incoming, response, query) => sendJson(response, number(query.get('status'), 503, 200, 599), whoAmI()),
  '/block': (incoming, response, query) => {
    const end = performance.now() + number(query.get('ms'), 100, 0, 10_000);
    while (performance.now() < end);
    sendJson(response, 200, whoAmI());
  },
  '/echo': (incoming, response) => {
    response.writeHead(200, { 'content-type': incoming.headers['content-type'] ?? 'application/octet-stream' });
    incoming.pipe(response);
    incoming.on('aborted', () => response.destroy());
  },
};

function readControl(told) {
  for (const [key, value] of Object.entries(told)) {
    if (typeof value !== typeof wellBehaved[key]) {
      throw new Error(`${key}: expected one of ${Object.entries(wellBehaved).map(([k, v]) => `${k} (${typeof v})`).join(', ')}`);
    }
  }
  const wanted = { ...wellBehaved, ...told };
  return { ...wanted, status: number(wanted.status, 503, 200, 599) };
}

async function readBody(incoming, limit) {
  let body = '';
  for await (const chunk of incoming) {
    body += chunk;
    if (body.length > limit) throw new Error(`the body is over ${limit} bytes`);
  }
  return body;
}

async function serve(incoming, response) {
  const url = new URL(incoming.url, 'http://worker');
  response.setHeader('x-worker', worker);
  response.setHeader('endpoint-load-metrics', loadMetrics());
  if (stopping) response.setHeader('connection', 'close');
  const manage = management[url.pathname];
  if (manage) return manage(incoming, response);

  requests += 1;
  inFlight += 1;
  response.on('close', () => {
    inFlight -= 1;
    answers.set(response.statusCode, (answers.get(response.statusCode) ?? 0) + 1);
  });
  if (control.delayMs > 0) await new Promise((resolve) => setTimeout(resolve, control.delayMs));
  if (Math.random() < control.resetRate) return incoming.socket.destroy();
  if (Math.random() < control.failRate) return sendJson(response, control.status, whoAmI());
  const page = pages[url.pathname] ?? (() => sendJson(response, 200, whoAmI()));
  page(incoming, response, url.searchParams);
}

const server = http.createServer((incoming, response) => {
  serve(incoming, response).catch((error) => {
    if (response.headersSent) response.destroy(error);
    else sendJson(response, 400, { error: error.message });
  });
});

// WebSocket (RFC 6455), as much as an echo needs: data frames come back as they are, unmasked.
const tunnels = new Set();
server.on('upgrade', (incoming, socket, head) => {
  const key = incoming.headers['sec-websocket-key'];
  if (incoming.headers.upgrade?.toLowerCase() !== 'websocket' || !key) {
    return socket.end('HTTP/1.1 400 Bad Request\r\nconnection: close\r\ncontent-length: 0\r\n\r\n');
  }
  const accept = crypto.createHash('sha1').update(`${key}258EAFA5-E914-47DA-95CA-C5AB0DC85B11`).digest('base64');
  socket.write(
    'HTTP/1.1 101 Switching Protocols\r\nupgrade: websocket\r\nconnection: Upgrade\r\n' +
      `sec-websocket-accept: ${accept}\r\nx-worker: ${worker}\r\n\r\n`,
  );
  tunnels.add(socket);
  socket.on('close', () => tunnels.delete(socket));
  socket.on('error', () => socket.destroy());
  let pending = head;
  const echo = (data) => {
    pending = Buffer.concat([pending, data]);
    for (let frame; (frame = readFrame(pending)); pending = pending.subarray(frame.length)) {
      if (frame.opcode === opcodes.close) return socket.end(writeFrame(0x80 | opcodes.close, frame.payload));
      if (frame.opcode === opcodes.ping) socket.write(writeFrame(0x80 | opcodes.pong, frame.payload));
      else if (frame.opcode !== opcodes.pong) socket.write(writeFrame(frame.first, frame.payload));
    }
  };
  socket.on('data', echo);
  echo(Buffer.alloc(0));
});

const opcodes = { close: 0x8, ping: 0x9, pong: 0xa };

function readFrame(buffer) {
  if (buffer.length < 2) return null;
  const first = buffer[0];
  const masked = (buffer[1] & 0x80) !== 0;
  let size = buffer[1] & 0x7f;
  let at = 2;
  if (size === 126) {
    if (buffer.length < 4) return null;
    size = buffer.readUInt16BE(2);
    at = 4;
  } else if (size === 127) {
    if (buffer.length < 10) return null;
    size = Number(buffer.readBigUInt64BE(2));
    at = 10;
  }
  const start = masked ? at + 4 : at;
  if (buffer.length < start + size) return null;
  const payload = Buffer.from(buffer.subarray(start, start + size));
  if (masked) for (let i = 0; i < size; i += 1) payload[i] ^= buffer[at + (i & 3)];
  return { first, opcode: first & 0xf, payload, length: start + size };
}

function writeFrame(first, payload) {
  let head;
  if (payload.length < 126) head = Buffer.from([first, payload.length]);
  else if (payload.length < 65_536) {
    head = Buffer.alloc(4);
    head.writeUInt16BE(payload.length, 2);
    head[1] = 126;
  } else {
    head = Buffer.alloc(10);
    head.writeBigUInt64BE(BigInt(payload.length), 2);
    head[1] = 127;
  }
  head[0] = first;
  return Buffer.concat([head, payload]);
}

// Stops as a worker should: no new connections, what runs is finished, idle connections are closed.
let stopping = false;
function stop() {
  if (stopping) return;
  stopping = true;
  server.close(() => process.exit(0));
  server.closeIdleConnections();
  for (const socket of tunnels) socket.end(writeFrame(0x80 | opcodes.close, Buffer.from([0x03, 0xe9]))); // 1001: going away
}
process.on('SIGTERM', stop);
process.on('SIGINT', stop);

server.listen(port, () => console.log(`${worker} listens on ${port}`));
