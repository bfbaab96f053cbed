// The clients of `tests/tests/proxy_node.rs`: `node client.js CASE PORT`. Ends with 0 when they saw what they should.
const assert = require('node:assert');
const http = require('node:http');
const net = require('node:net');

const [name, port] = [process.argv[2], Number(process.argv[3])];
const at = { host: '127.0.0.1', port };

function body(response) {
  return new Promise((resolve, reject) => {
    let text = '';
    response.on('data', (chunk) => { text += chunk; });
    response.on('end', () => resolve(text));
    response.on('error', reject);
  });
}

function answer(request) {
  return new Promise((resolve, reject) => {
    request.on('response', resolve);
    request.on('error', reject);
  });
}

const cases = {
  async 'early hints'() {
    for (let round = 0; round < 3; round += 1) {
      const request = http.request({ ...at, path: '/hints', agent: new http.Agent({ keepAlive: true }) });
      const seen = [];
      request.on('information', (hint) => seen.push([hint.statusCode, hint.headers]));
      request.end();
      const response = await answer(request);
      assert.deepStrictEqual(seen, [[103, { link: '</style.css>; rel=preload' }]]);
      assert.strictEqual(await body(response), 'hinted');
    }
    process.exit(0);
  },

  async 'the worker asks for the content'() {
    const request = http.request({ ...at, method: 'POST', path: '/', headers: { expect: '100-continue', 'content-length': 5 } });
    const asked = new Promise((resolve) => request.on('continue', resolve));
    request.flushHeaders();
    await asked;
    request.end('hello');
    assert.strictEqual(await body(await answer(request)), '5');
  },

  async 'the worker refuses the content'() {
    const headers = { expect: '100-continue', 'content-length': 5, 'x-refuse': '1' };
    const request = http.request({ ...at, method: 'POST', path: '/', headers });
    request.on('continue', () => assert.fail('nobody wants it'));
    request.flushHeaders();
    const response = await answer(request);
    assert.strictEqual(response.statusCode, 401);
    assert.strictEqual(response.headers.connection, 'close');
    request.destroy();
  },

  async 'a refused upload learns why'() {
    const payload = Buffer.alloc(8 << 20, 'x');
    for (let round = 0; round < 20; round += 1) {
      const request = http.request({ ...at, method: 'POST', path: '/limited', agent: new http.Agent({ keepAlive: round % 2 === 0 }) });
      request.end(payload);
      const response = await answer(request);
      assert.strictEqual(response.statusCode, 429);
      assert(Number(response.headers['retry-after']) > 0);
      assert(response.headers['proxy-status'].startsWith('outrigger; error='));
      await body(response);
    }
    process.exit(0);
  },

  async 'half-closed'() {
    const socket = net.connect({ ...at, allowHalfOpen: true });
    socket.end('POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 5\r\n\r\nhello');
    const text = await body(socket);
    assert(text.startsWith('HTTP/1.1 200 OK\r\n'), text);
    assert(text.endsWith('5'), text);
  },

  async 'an untouched query'() {
    const socket = net.connect(at);
    socket.write('GET /url?q="<>" HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n');
    const text = await body(socket);
    assert(text.endsWith('untouched'), text);
  },
};

cases[name]().catch((error) => {
  console.error(`${name}: ${error.stack}`);
  process.exit(1);
});
