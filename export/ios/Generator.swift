// Not compiled or run: no Swift compiler was at hand. It is written against TensorFlowLiteSwift and the file's signatures.

import Foundation
import TensorFlowLite

/// Pictures from seeds, by NAME.tflite and the NAME.json that describes it. Call it off the main thread.
final class Generator {
  struct About: Decodable {
    let description_version: Int
    let batch_size: Int
    let image_shape: [Int]
    let num_classes: Int?
    let network_calls: Int  // may be more than the sampler's steps
    let min_runtime_version: String
    let target: String?
    let signatures: [String: Signature]
  }
  struct Signature: Decodable {}
  struct Unusable: Error { let message: String }

  private static let descriptionVersion = 3  // of NAME.json; its fields have other meanings in other versions
  let about: About
  private let interpreter: Interpreter
  private let start, step, finish: SignatureRunner

  init(name: String = "model", bundle: Bundle = .main, threads: Int = 4) throws {
    guard let model = bundle.path(forResource: name, ofType: "tflite"),
      let side = bundle.url(forResource: name, withExtension: "json")
    else { throw Unusable(message: "\(name).tflite or \(name).json is missing") }
    let content = try Data(contentsOf: side)
    struct Version: Decodable { let description_version: Int? }
    let version = try JSONDecoder().decode(Version.self, from: content).description_version
    guard version == Self.descriptionVersion else {
      let received = version.map(String.init) ?? "none, as in older exports"
      throw Unusable(message: "\(name).json must have description_version \(Self.descriptionVersion). Received: \(received)")
    }
    about = try JSONDecoder().decode(About.self, from: content)
    let least = about.min_runtime_version
    guard least.compare(Runtime.version, options: .numeric) != .orderedDescending else {
      throw Unusable(message: "\(name).tflite needs TensorFlow Lite \(least) or newer. Received: \(Runtime.version)")
    }
    guard about.batch_size == 1, about.target ?? "cpu" == "cpu",
      ["start", "step", "finish"].allSatisfy({ about.signatures[$0] != nil })
    else { throw Unusable(message: "\(name).tflite must have start, step and finish, of batch_size 1 and for the CPU") }
    var options = Interpreter.Options()
    options.threadCount = threads
    options.isXNNPackEnabled = true
    interpreter = try Interpreter(modelPath: model, options: options)
    start = try interpreter.signatureRunner(with: "start")
    step = try interpreter.signatureRunner(with: "step")
    finish = try interpreter.signatureRunner(with: "finish")
    for runner in [start, step, finish] { try runner.allocateTensors() }
  }

  /// The picture of a seed, and of a label if the model has classes: values 0 .. 255, height x width x channels.
  /// `show` gets it as it forms, after every call of the network.
  func generate(seed: Int32, label: Int32? = nil, show: (Int, [UInt8]) -> Void = { _, _ in }) throws -> [UInt8] {
    try start.invoke(with: ["seed": Self.data([seed])])
    var x = try start.output(named: "x").data
    for index in 0..<about.network_calls {
      var inputs = ["x": x, "index": Self.data([Int32(index)]), "seed": Self.data([seed])]
      if let classes = about.num_classes.map(Int32.init) {
        inputs["label"] = Self.data([label ?? ((seed % classes) + classes) % classes])
      }
      try step.invoke(with: inputs)
      x = try step.output(named: "x").data
      show(index, try picture(of: x))
    }
    return try picture(of: x)
  }

  private func picture(of x: Data) throws -> [UInt8] {
    try finish.invoke(with: ["x": x])
    let values = try finish.output(named: "image").data
    return values.withUnsafeBytes { $0.bindMemory(to: Int32.self).map(UInt8.init) }
  }

  private static func data(_ numbers: [Int32]) -> Data { numbers.withUnsafeBytes { Data($0) } }
}
