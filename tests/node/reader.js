'use strict';
// Reads requests as Node does, for tests that compare readers. Standard input: cases, each a length of four bytes and the
// bytes of a connection. Standard output: the methods that Node knows, then one line of JSON for each case, in order.
const http = require('node:http');
const { Duplex } = require('node:stream');

const server = http.createServer({ maxHeaderSize: 1 << 20, insecureHTTPParser: false, keepAliveTimeout: 0 });
server.headersTimeout = server.requestTimeout = server.timeout = 0;
server.httpAllowHalfOpen = true; // the end of the bytes aborts no request that has come whole
server.on('request', note);
server.on('checkExpectation', note);
server.on('connect', (_, socket) => refuse(socket, 'CONNECT'));
server.on('clientError', (error, socket) => refuse(socket, error.code));

/** Notes a request when it is whole. */
function note(request, response) {
  const parts = [];
  request.on('data', (part) => parts.push(part));
  request.on('error', () => {}); // it broke off: `clientError` says why
  request.on('end', () => {
    if (!request.complete) return;
    request.socket.reading.requests.push({
      method: request.method,
      target: request.url,
      fields: pairs(request.rawHeaders),
      trailers: pairs(request.rawTrailers),
      body: Buffer.concat(parts).toString('base64'),
    });
  });
  response.end();
}

function pairs(raw) {
  return Array.from({ length: raw.length / 2 }, (_, at) => [raw[2 * at], raw[2 * at + 1]]);
}

function refuse(socket, why) {
  socket.reading.refusal = why;
  setImmediate(() => socket.destroy()); // what came before is noted first
}

const readings = []; // of the cases whose line is not written, in order
function read(bytes) {
  const reading = { requests: [], refusal: null, done: false };
  readings.push(reading);
  const socket = new Duplex({ read() {}, write: (part, encoding, taken) => taken(), allowHalfOpen: true });
  socket.reading = reading;
  const over = () => {
    if (reading.done) return;
    reading.done = true;
    clearTimeout(late);
    socket.destroy();
    while (readings.length && readings[0].done) {
      const { requests, refusal } = readings.shift();
      process.stdout.write(`${JSON.stringify({ requests, refusal })}\n`);
    }
  };
  const late = setTimeout(over, 500); // within a request whose end has not come
  socket.on('close', over);
  socket.on('error', () => {});
  server.emit('connection', socket);
  socket.push(bytes);
  setImmediate(() => setImmediate(() => socket.push(null)));
}

process.stdout.write(`${JSON.stringify(http.METHODS)}\n`);
let waiting = Buffer.alloc(0);
process.stdin.on('data', (part) => {
  waiting = Buffer.concat([waiting, part]);
  while (waiting.length >= 4 && waiting.length >= 4 + waiting.readUInt32BE()) {
    const end = 4 + waiting.readUInt32BE();
    read(Buffer.from(waiting.subarray(4, end)));
    waiting = waiting.subarray(end);
  }
});
